"""Pictures in folders with their captions beside them, and lists of pictures and captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from dalle3.data.base import PICTURES, BrokenSampleError, Sample, caption_lines
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
            raise DataError(f"{folder} is not a folder; pass the folder that holds the pictures")
        self.folder = folder
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        pictures, texts = [path for path in files if path.suffix.lower() in PICTURES], set(files)
        self.captioned = {path for path in pictures if path.with_suffix(".txt") in texts}
        self.paths = [path for path in pictures if path in self.captioned or not needs_captions]
        self.skipped = [f"{path}: no caption file beside it" for path in pictures if path not in set(self.paths)]
        if not self.paths:
            raise DataError(_nothing(folder, pictures=len(pictures)))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The picture's path."""
        return str(self.paths[index])

    def load(self, index: int) -> Sample[Image.Image]:
        """The picture and its captions."""
        path = self.paths[index]
        picture = decode_picture(_read(path), where=str(path))
        if path not in self.captioned:
            return Sample(content=picture)
        text = _read(path.with_suffix(".txt")).decode(errors="replace")
        return Sample(content=picture, captions=caption_lines(text, where=str(path.with_suffix(".txt"))))


class CaptionList:
    """A JSONL file: each line an object with `image`, a path relative to the file, and `caption`, a text or several.

    Raises:
        DataError: there is no such file, a line is not such an object, or there is none.
    """

    def __init__(self, path: Path, *, needs_captions: bool = True) -> None:
        if not path.is_file():
            raise DataError(f"{path} does not exist; pass a .jsonl file whose lines have `image` and `caption`")
        self.path, self.skipped = path, []
        self.rows: list[tuple[Path, tuple[str, ...]]] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                self._add(line, f"{path}, line {number}", needs_captions=needs_captions)
        if not self.rows:
            raise DataError(f"{path} names no picture that can be used; {len(self.skipped)} lines were skipped")

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The picture's path."""
        return str(self.rows[index][0])

    def load(self, index: int) -> Sample[Image.Image]:
        """The picture and its captions."""
        path, captions = self.rows[index]
        return Sample(content=decode_picture(_read(path), where=str(path)), captions=captions)

    def _add(self, line: str, where: str, *, needs_captions: bool) -> None:
        row = _json_object(line, where)
        if not isinstance(row.get("image"), str):
            raise DataError(f"{where}: no `image`; a line is {{'image': 'a.png', 'caption': 'what it shows'}}")
        captions = json_captions(row)
        if needs_captions and not captions:
            self.skipped.append(f"{where}: no caption")
        else:
            self.rows.append((self.path.parent / row["image"], captions))


def json_captions(row: dict[str, Any]) -> tuple[str, ...]:
    """The captions in an object's `captions` or `caption`, a text or a list of texts."""
    found = row.get("captions") or row.get("caption") or ()
    texts = [found] if isinstance(found, str) else found
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())


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


def _nothing(folder: Path, *, pictures: int) -> str:
    kinds = ", ".join(sorted(PICTURES))
    if pictures:
        return f"{folder} holds {pictures} pictures and none has a caption; put the caption of a.png in a.txt beside it"
    return f"{folder} holds no pictures; it should hold files of {kinds} with a .txt of the same name beside each"
