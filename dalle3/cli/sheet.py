"""`dalle3 sheet OUT.png`: all pictures of a folder of outputs on one, each above its prompt."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from dalle3.config import add_arguments as add_flags
from dalle3.config import from_args, option
from dalle3.errors import ConfigError, DataError, OutputError
from dalle3.output import save_image
from dalle3.sheet import contact_sheet, tiles_of

HELP = "put all pictures of a folder of outputs on one contact sheet"


@dataclass(frozen=True, kw_only=True)
class SheetConfig:
    """Which pictures, and how they lie."""

    outputs_dir: Path = option(Path("outputs"), help="folder that generate.py wrote, with its manifest.jsonl")
    columns: int = option(5, help="prompts in a row")
    side: int = option(128, help="width and height in pixels of every picture on the sheet")
    number: int | None = option(None, help="only so many, the first in the manifest (default: all)")

    def __post_init__(self) -> None:
        """Raises ConfigError for counts below 1."""
        for name in ("columns", "side", "number"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` the file and the flags."""
    parser.add_argument("out", type=Path, help="the picture to write: .png, .jpg or .webp")
    add_flags(parser, SheetConfig, title="sheet")


def run(args: argparse.Namespace) -> int:
    """Writes the sheet and returns 0.

    Raises:
        Dalle3Error: there are no outputs, one cannot be read, or the sheet cannot be written.
    """
    config = from_args(SheetConfig, args)
    tiles = list(tiles_of(config.outputs_dir))[: config.number]
    if not tiles:
        raise DataError(f"{config.outputs_dir}/manifest.jsonl lists no pictures; draw some first")
    if any(path.exists() and args.out.exists() and path.samefile(args.out) for tile in tiles for path in tile.paths):
        raise OutputError(f"{args.out} is one of the pictures of the sheet; name another file")
    save_image(contact_sheet(tiles, columns=config.columns, side=config.side, ending=args.out.suffix), args.out)
    print(f"{args.out}: {len(tiles)} pictures")
    return 0
