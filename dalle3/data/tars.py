"""WebDataset tars, read at random through an index of offsets.

A sample is the run of members that share a name up to the first dot of its last part: `000.png`, `000.txt`.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from dalle3.data.base import PICTURES, BrokenSampleError, Sample, caption_lines
from dalle3.data.folder import json_captions
from dalle3.data.transforms import decode_picture
from dalle3.errors import DataError

TEXTS = ("txt", "json")
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Span:
    """Where a member's bytes lie in its tar."""

    offset: int
    size: int


@dataclass
class Entry:
    """One sample: its tar, its key, and its members by suffix."""

    tar: Path
    key: str
    members: dict[str, Span] = field(default_factory=dict)


class TarShards:
    """The samples of uncompressed tars, in the order of the tars.

    Args:
        tars: the files; `expand` makes them from a pattern.
        columns: the suffixes of picture and caption, such as ("jpg", "txt"); empty takes any picture and the caption
            from txt, else from json (`captions` or `caption`).
        needs_captions: leave out samples without a caption.
    Raises:
        DataError: a file is missing or compressed, or nothing in them can be used.
    """

    def __init__(self, tars: Sequence[Path], *, columns: tuple[str, ...] = (), needs_captions: bool = True) -> None:
        self.picture_suffixes = columns[:1] or tuple(sorted(suffix[1:] for suffix in PICTURES))
        self.text_suffixes = columns[1:2] or TEXTS
        self.needs_captions, self.skipped = needs_captions, []
        found = [entry for tar in tars for entry in self._index(tar)]
        self.entries = [entry for entry in found if self._usable(entry)]
        if not self.entries:
            wanted = f"a picture ({', '.join(self.picture_suffixes)}) and a caption ({', '.join(self.text_suffixes)})"
            raise DataError(f"none of {len(found)} samples in {len(tars)} tars has {wanted}; name them with --wds")

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        """The sample as tar and key."""
        return f"{self.entries[index].tar}:{self.entries[index].key}"

    def load(self, index: int) -> Sample[Image.Image]:
        """The picture and its captions."""
        entry, where = self.entries[index], self.name(index)
        content = _read(entry.tar, entry.members[_first(entry, self.picture_suffixes) or ""])
        picture = decode_picture(content, where=where)
        suffix = _first(entry, self.text_suffixes)
        captions = _captions(_read(entry.tar, entry.members[suffix]), suffix, where) if suffix else ()
        if self.needs_captions and not captions:
            raise BrokenSampleError(f"{where}: the caption is empty")
        return Sample(content=picture, captions=captions)

    def _index(self, tar: Path) -> list[Entry]:
        entries: dict[str, Entry] = {}
        for name, span in self._members(tar):
            key, suffix = _split(name)
            entries.setdefault(key, Entry(tar, key)).members[suffix] = span
        return list(entries.values())

    def _members(self, tar: Path) -> Iterator[tuple[str, Span]]:
        if not tar.is_file():
            raise DataError(f"{tar} does not exist; check the path and the braces of the pattern")
        with tar.open("rb") as file:
            if file.read(2) == _GZIP:
                raise DataError(f"{tar} is compressed and cannot be read at random; gunzip it first")
            file.seek(0)
            try:
                yield from _spans(file, tar.stat().st_size)
            except tarfile.ReadError as error:
                self.skipped.append(f"{tar}: {error}; the samples before that are used")

    def _usable(self, entry: Entry) -> bool:
        if _first(entry, self.picture_suffixes) is None:
            self.skipped.append(f"{entry.tar}:{entry.key}: no picture")
        elif self.needs_captions and _first(entry, self.text_suffixes) is None:
            self.skipped.append(f"{entry.tar}:{entry.key}: no caption")
        else:
            return True
        return False


def expand(pattern: str) -> list[Path]:
    """The files of a pattern with braces, `{00..12}` and `{a,b}`, or of a folder, whose tars they are."""
    if (folder := Path(pattern)).is_dir():
        return sorted(folder.glob("*.tar"))
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[piece] if i % 2 == 0 else _alternatives(piece) for i, piece in enumerate(pieces)]
    return [Path("".join(parts)) for parts in itertools.product(*choices)]


def _spans(file: BinaryIO, length: int) -> Iterator[tuple[str, Span]]:
    with tarfile.open(fileobj=file, mode="r:") as opened:
        for member in opened:
            if member.isfile() and member.offset_data + member.size > length:
                raise tarfile.ReadError("unexpected end of data")
            if member.isfile():
                yield member.name, Span(member.offset_data, member.size)


def _alternatives(inside: str) -> list[str]:
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = span.groups()
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return inside.split(",")


def _split(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _first(entry: Entry, suffixes: Sequence[str]) -> str | None:
    return next((suffix for suffix in suffixes if suffix in entry.members), None)


def _read(tar: Path, span: Span) -> bytes:
    try:
        with tar.open("rb") as file:
            file.seek(span.offset)
            return file.read(span.size)
    except OSError as error:
        raise BrokenSampleError(f"{tar}: {error.strerror}") from None


def _captions(content: bytes, suffix: str, where: str) -> tuple[str, ...]:
    text = content.decode(errors="replace")
    if not suffix.endswith("json"):
        return caption_lines(text, where=where)
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise BrokenSampleError(f"{where}: the json is broken ({error.msg})") from None
    return json_captions(row) if isinstance(row, dict) else ()
