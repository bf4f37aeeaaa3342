"""Opens what the user named: a folder, tars, or a list."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dalle3.data.base import Source
from dalle3.data.folder import CaptionedFolder, CaptionList
from dalle3.data.tars import TarShards, expand
from dalle3.errors import DataError
from dalle3.log import warn


def open_pictures(name: str, *, columns: str = "", needs_captions: bool = True) -> Source[Image.Image]:
    """The pictures called `name`, with a warning about what had to be left out.

    Args:
        name: a folder, a `.jsonl` file, a `.tar` file or a pattern of them with braces.
        columns: the suffixes of picture and caption in tars, `img,cap`; given, a folder is taken as a folder of tars.
        needs_captions: leave out pictures without a caption.
    Raises:
        DataError: nothing there can be used.
    """
    source = _open(name, tuple(part.strip() for part in columns.split(",") if part.strip()), needs_captions)
    if source.skipped:
        warn(f"{len(source.skipped)} of {len(source.skipped) + len(source)} left out, first: {source.skipped[0]}")
    return source


def _open(name: str, columns: tuple[str, ...], needs_captions: bool) -> Source[Image.Image]:
    if name.startswith(("http://", "https://", "pipe:")):
        raise DataError(f"{name}: tars are read from disk; download them first")
    path = Path(name)
    if path.suffix == ".jsonl":
        return CaptionList(path, needs_captions=needs_captions)
    tars = expand(name) if columns or ".tar" in path.suffixes or _holds_only_tars(path) else []
    if tars:
        return TarShards(tars, columns=columns, needs_captions=needs_captions)
    return CaptionedFolder(path, needs_captions=needs_captions)


def _holds_only_tars(path: Path) -> bool:
    return path.is_dir() and any(path.glob("*.tar")) and not any(path.rglob("*.txt"))
