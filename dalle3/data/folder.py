"""Pictures in folders with their captions beside them, and lists of pictures and captions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from dalle3.data.base import PICTURES, BrokenSampleError, Sample, caption_lines, json_captions
from dalle3.data.transforms import decode_picture
from dalle3.errors import DataError


class CaptionedFolder:
    """Every picture below a folder; the captions of `a/b.png` are the lines of `a/b.txt`.

    img2dataset's `files` output has this form. Without `needs_captions`, pictures alone will do.

    Raises:
        DataError: there is no such folder, or nothing in it can be used.
    """

    def __init__(self, folder: Path, *, needs_captions: bool = True) -> None:
        if not folder.is_dir():
            found = "is a file" if folder.exists() else "does not exist"
            raise DataError(
                f"{folder} {found}; name a folder of pictures, a .jsonl or a .tar, or several as 'a-{{00..09}}.tar'"
            )
        self.folder, self.needs_captions = folder, needs_captions
        self.at_least: int | None = None
        found = sorted(_pictures(folder), key=lambda picture: picture[0].split(os.sep))
        self.paths = [path for path, captioned in found if captioned or not needs_captions]
        self.captioned = bytearray(captioned for _, captioned in found if captioned or not needs_captions)
        uncaptioned = [path for path, captioned in found if needs_captions and not captioned]
        self.skipped = [f"{folder / path}: no caption file beside it" for path in uncaptioned]
        if not self.paths:
            raise DataError(_nothing(folder, pictures=len(found)))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The picture's path."""
        return str(self.folder / self.paths[index])

    def num_bytes(self) -> int:
        """The bytes of all pictures as they are stored."""
        return sum(_size(self.folder / path) for path in self.paths)

    def load(self, index: int) -> Sample[Image.Image]:
        """The picture and its captions."""
        path = self.folder / self.paths[index]
        picture = decode_picture(_read(path), where=str(path), at_least=self.at_least)
        return Sample(content=picture, captions=self.captions(index))

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of a picture, which is not read.

        Raises:
            BrokenSampleError: they cannot be read, or there are none where they are needed.
        """
        if not self.captioned[index]:
            return ()
        path = (self.folder / self.paths[index]).with_suffix(".txt")
        captions = caption_lines(_read(path).decode(errors="replace"))
        if self.needs_captions and not captions:
            raise BrokenSampleError(f"{path}: the caption is empty")
        return captions


class CaptionList:
    """A JSONL file: each line an object with `image`, a path relative to the file, and `caption`, a text or several.

    Raises:
        DataError: there is no such file, a line is not such an object, or there is none.
    """

    def __init__(self, path: Path, *, needs_captions: bool = True) -> None:
        if not path.is_file():
            raise DataError(f"{path} does not exist; pass a .jsonl file whose lines have `image` and `caption`")
        self.path, self.skipped = path, []
        self.at_least: int | None = None
        self.rows: list[tuple[str, tuple[str, ...]]] = []
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    self._add(line, f"{path}, line {number}", needs_captions=needs_captions)
        if not self.rows:
            raise DataError(f"{path} names no picture that can be used; {len(self.skipped)} lines were skipped")

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The picture's path."""
        return str(self.path.parent / self.rows[index][0])

    def num_bytes(self) -> int:
        """The bytes of all pictures as they are stored; one that is missing has none."""
        return sum(_size(self.path.parent / name) for name, _ in self.rows)

    def load(self, index: int) -> Sample[Image.Image]:
        """The picture and its captions."""
        name, captions = self.rows[index]
        path = self.path.parent / name
        return Sample(content=decode_picture(_read(path), where=str(path), at_least=self.at_least), captions=captions)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of a picture, which is not read."""
        return self.rows[index][1]

    def _add(self, line: str, where: str, *, needs_captions: bool) -> None:
        row = _json_object(line, where)
        if not isinstance(row.get("image"), str):
            raise DataError(f"{where}: no `image`; a line is {{'image': 'a.png', 'caption': 'what it shows'}}")
        captions = json_captions(row)
        if needs_captions and not captions:
            self.skipped.append(f"{where}: no caption")
        else:
            self.rows.append((row["image"], captions))


def _pictures(folder: Path) -> Iterator[tuple[str, bool]]:
    """The paths of the pictures below a folder, relative to it, and whether a .txt stands beside each."""
    for place, _, files in os.walk(folder):
        inside = os.path.relpath(place, folder)
        texts = {name[: -len(".txt")] for name in files if name.endswith(".txt")}
        for name in files:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in PICTURES:
                yield os.path.normpath(os.path.join(inside, name)), stem in texts


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: {type(row).__name__}; expected an object with `image` and `caption`")
    return row


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BrokenSampleError(f"{path}: {error.strerror}") from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _nothing(folder: Path, *, pictures: int) -> str:
    kinds = ", ".join(sorted(PICTURES))
    if pictures:
        return f"{folder} holds {pictures} pictures and none has a caption; put the caption of a.png in a.txt beside it"
    return f"{folder} holds no pictures; it should hold files of {kinds} with a .txt of the same name beside each"
