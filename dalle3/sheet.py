"""Contact sheets: many pictures and their prompts on one."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dalle3.errors import ConfigError, DataError, ImageError

GAP = 8  # pixels around each tile, and between its pictures
LINE, LINES = 16, 3  # pixels of a line of text, and lines of a prompt
MOST_PIXELS = 178_000_000  # of a sheet: Pillow reads no picture of more
LONGEST = {".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500}  # pixels a side that the format can hold


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A prompt and its pictures, which stand side by side: drawn, then decoded where it was."""

    prompt: str
    paths: tuple[Path, ...]


def tiles_of(outputs: Path) -> Iterator[Tile]:
    """The pictures that the manifest of a folder of outputs lists, in the order they were written.

    Raises:
        DataError: there is no manifest, or it cannot be read.
    """
    manifest = outputs / "manifest.jsonl"
    try:
        lines = manifest.read_text(encoding="utf-8").split("\n")  # a prompt may hold other separators, such as U+2028
        for line in map(json.loads, filter(None, lines)):
            names = ("file", "decoded") if "decoded" in line else ("file",)
            yield Tile(prompt=str(line["prompt"]), paths=tuple(outputs / line[name] for name in names))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "a line is not what generate.py writes"
        raise DataError(f"{manifest}: {reason}; name a folder of outputs of generate.py") from None


def contact_sheet(tiles: Sequence[Tile], *, columns: int, side: int, ending: str = ".png") -> Image.Image:
    """The tiles in rows of `columns`, every picture `side` pixels wide and high, each prompt below its pictures.

    Args:
        ending: of the file it goes to.
    Raises:
        ConfigError: the sheet would be larger than such a file can be.
        ImageError: a picture is missing or cannot be read.
    """
    pictures = max(len(tile.paths) for tile in tiles)
    width, height = pictures * side + (pictures + 1) * GAP, side + 2 * GAP + LINES * LINE
    columns = min(columns, len(tiles))
    size = columns * width, -(-len(tiles) // columns) * height
    if size[0] * size[1] > MOST_PIXELS or max(size) > LONGEST.get(ending.lower(), MOST_PIXELS):
        raise ConfigError(
            f"{len(tiles)} pictures in {columns} columns would be {size[0]} x {size[1]} pixels, more than a {ending} "
            "holds; pass a smaller --side or --number, or other --columns"
        )
    sheet = Image.new("RGB", size, "white")
    for place, tile in enumerate(tiles):
        sheet.paste(_drawn(tile, (width, height), side), (place % columns * width, place // columns * height))
    return sheet


def _drawn(tile: Tile, size: tuple[int, int], side: int) -> Image.Image:
    image = Image.new("RGB", size, "white")
    for place, path in enumerate(tile.paths):
        image.paste(_read(path, side), (GAP + place * (side + GAP), GAP))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=LINE - 5)
    letters = max(8, int((size[0] - 2 * GAP) / font.getlength("n")))
    lines = textwrap.wrap(tile.prompt, letters, max_lines=LINES, placeholder=" …")
    pen.text((size[0] / 2, side + 2 * GAP), "\n".join(lines), fill="black", font=font, anchor="ma", align="center")
    return image


def _read(path: Path, side: int) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    except OSError as error:
        reason = error.strerror or "it is not a picture that can be read"
        raise ImageError(f"{path}: {reason}; the manifest lists it") from None
