"""WebDataset tars, read at random through an index of offsets.

A sample is the members that share a name up to the first dot of its last part: `000.png`, `000.txt`.

Shapes: N samples.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image

from dalle3.data.base import PICTURES, BrokenSampleError, Sample, caption_lines, json_captions
from dalle3.data.tar_members import DamagedTarError, Member, read_members
from dalle3.data.transforms import decode_picture
from dalle3.errors import DataError

TEXTS = ("txt", "json")
NO_TEXT = -1
_GZIP = b"\x1f\x8b"
_COLUMNS = 5  # offset and size of the picture, which suffix the captions have, their offset and size


class TarShards:
    """The samples of uncompressed tars, in the order of the tars.

    The index takes 40 bytes a sample and the longest key's length, which processes that read ahead share.

    Args:
        tars: the files; `open_pictures` makes them from a pattern.
        columns: the suffixes of picture and caption, such as ("jpg", "txt"); empty takes any picture and the caption
            from txt, else from json (`captions` or `caption`).
        needs_captions: leave out samples without a caption.
    Raises:
        DataError: a file is missing or compressed, or nothing in them can be used.
    """

    def __init__(self, tars: Sequence[Path], *, columns: tuple[str, ...] = (), needs_captions: bool = True) -> None:
        self.tars, self.needs_captions = list(tars), needs_captions
        self.picture_suffixes = columns[:1] or tuple(sorted(suffix[1:] for suffix in PICTURES))
        self.text_suffixes = columns[1:2] or TEXTS
        self.skipped: list[str] = []
        self.at_least: int | None = None
        indexed = [self._index(tar) for tar in self.tars]
        self._starts = list(accumulate((len(rows) for rows, _ in indexed), initial=0))
        self._rows = np.concatenate([rows for rows, _ in indexed])  # (N, _COLUMNS)
        self._keys = np.concatenate([keys for _, keys in indexed])
        if not len(self):
            wanted = f"a picture ({', '.join(self.picture_suffixes)}) and a caption ({', '.join(self.text_suffixes)})"
            found = f"none of {len(self.skipped)} samples in {len(self.tars)} tars has {wanted}; name them with --wds"
            raise DataError(f"{found} (first: {self.skipped[0]})" if self.skipped else found)

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """The sample as tar and key."""
        return f"{self._tar(index)}:{self._keys[index].decode(errors='surrogateescape')}"

    def num_bytes(self) -> int:
        """The bytes of all pictures as they are stored."""
        return int(self._rows[:, 1].sum())

    def load(self, index: int) -> Sample[Image.Image]:
        """The picture and its captions."""
        picture = decode_picture(self._bytes(index, 0), where=self.name(index), at_least=self.at_least)
        return Sample(content=picture, captions=self.captions(index))

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of a picture, which is not read.

        Raises:
            BrokenSampleError: they cannot be read, or there are none where they are needed.
        """
        captions, which = (), int(self._rows[index, 2])
        if which != NO_TEXT:
            text = self._bytes(index, 3).decode(errors="replace")
            captions = _captions(text, self.text_suffixes[which], self.name(index))
        if self.needs_captions and not captions:
            raise BrokenSampleError(f"{self.name(index)}: the caption is empty")
        return captions

    def _tar(self, index: int) -> Path:
        return self.tars[bisect_right(self._starts, index) - 1]

    def _bytes(self, index: int, column: int) -> bytes:
        """The member whose offset and size stand in a row from `column` on."""
        offset, size = self._rows[index, column : column + 2].tolist()
        return _read(self._tar(index), offset, size)

    def _index(self, tar: Path) -> tuple[np.ndarray, np.ndarray]:
        """The samples of a tar that can be used: rows (N, _COLUMNS), int64, and keys (N,)."""
        rows, keys = [], []
        for key, members in self._samples(tar).items():
            row = self._row(members)
            reason = "no picture" if row is None else "no caption" if self.needs_captions and row[2] == NO_TEXT else ""
            if reason:
                self.skipped.append(f"{tar}:{key}: {reason}")
            else:
                rows.append(row)
                keys.append(key.encode(errors="surrogateescape"))
        return np.array(rows, np.int64).reshape(-1, _COLUMNS), np.array(keys, np.bytes_)

    def _row(self, members: dict[str, Member]) -> tuple[int, int, int, int, int] | None:
        picture = next((members[suffix] for suffix in self.picture_suffixes if suffix in members), None)
        if picture is None:
            return None
        which = next((i for i, suffix in enumerate(self.text_suffixes) if suffix in members), NO_TEXT)
        text = members[self.text_suffixes[which]] if which != NO_TEXT else Member("", 0, 0)
        return picture.offset, picture.size, which, text.offset, text.size

    def _samples(self, tar: Path) -> dict[str, dict[str, Member]]:
        samples: dict[str, dict[str, Member]] = {}
        for member in self._members(tar):
            key, suffix = _split(member.name)
            samples.setdefault(key, {})[suffix] = member
        return samples

    def _members(self, tar: Path) -> Iterator[Member]:
        if not tar.is_file():
            raise DataError(f"{tar} does not exist; check the path or the pattern")
        try:
            with tar.open("rb") as file:
                if file.read(2) == _GZIP:
                    raise DataError(f"{tar} is compressed and cannot be read at random; gunzip it first")
            yield from read_members(tar)
        except DamagedTarError as error:
            self.skipped.append(f"{tar}: {error}; the samples before that are used")
        except OSError as error:
            raise DataError(f"{tar} cannot be read: {error.strerror}") from None


def _split(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _read(tar: Path, offset: int, size: int) -> bytes:
    try:
        with tar.open("rb", buffering=0) as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise BrokenSampleError(f"{tar}: {error.strerror}") from None
    if len(content) < size:
        raise BrokenSampleError(f"{tar}: it ends at byte {offset + len(content)} and did not when it was opened")
    return content


def _captions(text: str, suffix: str, where: str) -> tuple[str, ...]:
    if not suffix.endswith("json"):
        return caption_lines(text)
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise BrokenSampleError(f"{where}: the json is broken ({error.msg})") from None
    return json_captions(row) if isinstance(row, dict) else ()
