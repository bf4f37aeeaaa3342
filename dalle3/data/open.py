"""Opens what the user named: a folder, tars here or behind addresses, or a list."""

from __future__ import annotations

import glob
import itertools
import re
from pathlib import Path

from dalle3.data.base import PictureFiles
from dalle3.data.folder import CaptionedFolder, CaptionList
from dalle3.data.remote import ADDRESSES, fetch_all
from dalle3.data.tars import TarShards
from dalle3.errors import DataError
from dalle3.log import warn
from dalle3.runtime import home

COMMANDS = ("pipe:", "gs://", "s3://", "hdfs://", "file:")


def open_pictures(name: str, *, columns: str = "", needs_captions: bool = True) -> PictureFiles:
    """The pictures called `name`, with a warning about what had to be left out.

    Args:
        name: a folder, a `.jsonl` file, or a `.tar` file, an http address of one, or a pattern: of either with braces,
            of files with the shell's `*` too.
        columns: the suffixes of picture and caption in tars, `img,cap`; given, a folder is taken as a folder of tars.
        needs_captions: leave out pictures without a caption.
    Raises:
        DataError: nothing there can be used.
    """
    source = find_pictures(name, columns=columns, needs_captions=needs_captions)
    if source.skipped:
        warn(f"{len(source.skipped)} of {len(source.skipped) + len(source)} left out, first: {source.skipped[0]}")
    return source


def find_pictures(name: str, *, columns: str, needs_captions: bool) -> PictureFiles:
    """As `open_pictures`, without a word: what was left out is in `skipped`."""
    if name.startswith(COMMANDS):
        raise DataError(f"{name}: tars are read from disk or by http; give their paths or their http addresses")
    wanted = tuple(part.strip() for part in columns.split(",") if part.strip())
    if name.startswith(ADDRESSES):
        tars = fetch_all(expand(name), home() / "tars")
        return TarShards(tars, columns=wanted, needs_captions=needs_captions)
    path = Path(name)
    if path.suffix == ".jsonl":
        return CaptionList(path, needs_captions=needs_captions)
    if path.is_dir() and (wanted or _holds_only_tars(path)) and (tars := sorted(path.glob("*.tar"))):
        return TarShards(tars, columns=wanted, needs_captions=needs_captions)
    if not path.is_dir() and (wanted or ".tar" in path.suffixes):
        tars = [Path(tar) for pattern in expand(name) for tar in _matches(pattern)]
        return TarShards(tars, columns=wanted, needs_captions=needs_captions)
    return CaptionedFolder(path, needs_captions=needs_captions)


def expand(pattern: str) -> list[str]:
    """The names of a pattern with braces, `{00..12}` and `{a,b}`; several patterns are joined by `::`."""
    return [name for part in pattern.split("::") for name in _braces(part)]


def _matches(pattern: str) -> list[str]:
    """The files of a pattern as the shell knows them; a name that is there, or finds none, is meant as it stands."""
    return [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern)) or [pattern]


def _braces(pattern: str) -> list[str]:
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[piece] if i % 2 == 0 else _alternatives(piece) for i, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _alternatives(inside: str) -> list[str]:
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = span.groups()
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return inside.split(",")


def _holds_only_tars(path: Path) -> bool:
    return any(path.glob("*.tar")) and not any(path.rglob("*.txt"))
