"""The numbers of a PyTorch file: where each storage lies, and how a tensor is laid over it."""

from __future__ import annotations

import mmap
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

_LOCAL_HEADER = struct.Struct("<26xHH")  # the lengths of the name and of the extra field


@dataclass(frozen=True)
class Storage:
    """A run of numbers, (N,)."""

    numbers: Tensor


class Archive:
    """The zip archive torch.save and torch.jit.save write: records under one folder, stored uncompressed."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            # A private mapping: pages are read when used, and writing to a tensor leaves the file alone.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._zip = zipfile.ZipFile(path)
        self._root = next(name for name in self._zip.namelist() if name.endswith("/data.pkl"))[: -len("data.pkl")]
        if self._root + "byteorder" in self._zip.namelist() and self.read("byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")

    def read(self, record: str) -> bytes:
        """The bytes of a record."""
        return self._zip.read(self._root + record)

    def numbers(self, record: str, dtype: torch.dtype, count: int) -> Tensor:
        """The numbers of a record, (count,), in place in the file where it is not compressed."""
        info = self._zip.getinfo(self._root + record)
        if count < 0 or count * dtype.itemsize > info.file_size:
            raise ValueError(f"{record} holds {info.file_size} bytes, {count * dtype.itemsize} are needed")
        if count == 0:
            return torch.empty(0, dtype=dtype)
        name_length, extra_length = _LOCAL_HEADER.unpack_from(self._map, info.header_offset)
        offset = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if info.compress_type != zipfile.ZIP_STORED or offset % dtype.itemsize:
            return torch.frombuffer(bytearray(self._zip.read(info)), dtype=dtype, count=count)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset)


def archive_storages(archive: Archive) -> Callable[[Any], Storage]:
    """A function from a persistent id of a pickle to the storage it means, the same one each time."""
    found: dict[str, Storage] = {}

    def storage(pid: Any) -> Storage:
        tag, dtype, key, _, count = pid
        if tag != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"unknown persistent id {tag!r}")
        if key not in found:
            found[key] = Storage(archive.numbers(f"data/{key}", dtype, count))
        return found[key]

    return storage


def legacy_storages(storages: dict[str, Storage], *, size: int) -> Callable[[Any], Any]:
    """As `archive_storages`, for the format before zip, where the numbers follow the pickle: `fill_storages`.

    Args:
        storages: takes the storages met.
        size: bytes of the file, which no storage can exceed.
    """

    def storage(pid: Any) -> Any:
        if pid[0] == "module":  # (tag, class, source file, source): only the class is wanted
            return pid[1]
        tag, dtype, key, _, count, *view = pid
        if tag != "storage" or not isinstance(dtype, torch.dtype) or any(view):
            raise ValueError(f"unknown persistent id {tag!r}")
        if key not in storages:
            if not 0 <= count * dtype.itemsize <= size:
                raise ValueError(f"a storage of {count} numbers in a file of {size} bytes")
            storages[key] = Storage(torch.empty(count, dtype=dtype))
        return storages[key]

    return storage


def fill_storages(file: IO[bytes], keys: Sequence[str], storages: dict[str, Storage]) -> None:
    """Reads the numbers that follow the pickle: for each key their count and their bytes."""
    for key in keys:
        numbers = storages[key].numbers
        (count,) = struct.unpack("<q", file.read(8))
        if count != numbers.numel():
            raise ValueError(f"a storage of {count} numbers where {numbers.numel()} were announced")
        if count and file.readinto(numbers.view(torch.uint8).numpy()) != numbers.nbytes:  # type: ignore[attr-defined]
            raise EOFError("the numbers break off")


def rebuild(storage: Any, offset: int, shape: Any, stride: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor of `shape` and `stride` over a storage; torch checks that it stays inside."""
    numbers = storage.numbers if dtype is None else storage.numbers.view(dtype)
    return numbers.as_strided(tuple(shape), tuple(stride), offset)
