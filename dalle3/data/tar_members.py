"""Which files an uncompressed tar holds and where: ustar, GNU and pax headers, read without the files between.

Python's `tarfile` takes a damaged header for the end of the archive, and is several times slower.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dalle3.errors import DataError

BLOCK = 512
END = bytes(BLOCK)
FILES, LONG_NAME, EXTENDED = b"0\0007", b"L", b"x"


class Member(NamedTuple):
    """A file in a tar: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


class DamagedTarError(DataError):
    """A tar that breaks off or turns unreadable; what came before is sound."""


def read_members(tar: Path) -> Iterator[Member]:
    """The files of a tar in their order, folders and links left out.

    Raises:
        DamagedTarError: after the last sound member of a tar that is cut or damaged.
        OSError: the tar cannot be read.
    """
    with _mapped(tar, tar.stat().st_size) as content:
        try:
            yield from _members(content)
        except DamagedTarError:
            raise
        except ValueError as error:
            raise DamagedTarError(f"a header is damaged ({error})") from None


def _members(content: mmap.mmap | bytes) -> Iterator[Member]:
    offset, name, size = 0, None, None  # the last two: what an extension says of the member after it
    while (header := _block(content, offset)) != END:
        kind, own_size = header[156:157], _number(header[124:136]) if size is None else size
        data = offset + BLOCK
        offset = data + -(-own_size // BLOCK) * BLOCK
        if data + own_size > len(content):
            raise DamagedTarError(f"the file ends within {name or _name(header)}")
        if kind == LONG_NAME:
            name = _text(content[data : data + own_size])
        elif kind == EXTENDED:
            name, size = _extensions(content[data : data + own_size])
        else:
            if kind in FILES:
                yield Member(name or _name(header), data, own_size)
            name, size = None, None


@contextlib.contextmanager
def _mapped(tar: Path, length: int) -> Iterator[mmap.mmap | bytes]:
    if not length:  # nothing can be mapped
        yield b""
        return
    with tar.open("rb") as file, mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) as content:
        yield content


def _block(content: mmap.mmap | bytes, offset: int) -> bytes:
    header = content[offset : offset + BLOCK]
    if len(header) < BLOCK:
        raise DamagedTarError(f"the file ends at byte {len(content)} without a tar's end mark")
    if header != END and _checksum(header) != sum(header[:148]) + 256 + sum(header[156:]):
        raise DamagedTarError(f"byte {offset} should begin a file's header and does not")
    return header


def _checksum(header: bytes) -> int | None:
    try:
        return _number(header[148:156])
    except ValueError:
        return None


def _number(field: bytes) -> int:
    """A size: octal digits, or where those do not suffice a binary number behind a set bit."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    return int(field.strip(b" \0") or b"0", 8)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _extensions(content: bytes) -> tuple[str | None, int | None]:
    """The name and the size in a pax header, which is records of `length key=value` and a new line."""
    found: dict[bytes, bytes] = {}
    while content:
        length = int(content.split(b" ", 1)[0])
        if length < 1:
            raise ValueError(f"an entry of length {length}")
        key, _, value = content[:length].partition(b" ")[2].partition(b"=")
        found[key], content = value[:-1], content[length:]
    name, size = found.get(b"path"), found.get(b"size")
    return name.decode(errors="surrogateescape") if name else None, int(size) if size else None
