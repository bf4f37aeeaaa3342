"""Files and folders that are written whole or not at all, and text that is read line by line."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dalle3.errors import DataError, OutputError

TORCH_CANNOT_WRITE = ("inline_container", "PytorchStream", "iostream error")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends well.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which becomes `path` when the block ends well.

    Raises:
        OutputError: `path` exists and is not empty, the disk is full, or the place cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{path} exists already; name another folder or remove it first")
    partial = partial_folder(path)
    with reported(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def partial_folder(path: Path) -> Path:
    """The temporary folder that `whole_folder` yields."""
    return path.with_name(f"{path.name}.partial")


def writable_folder(path: Path) -> None:
    """Makes the folder `path` where it is not there yet, and tries it, so that work is not done for nothing.

    Raises:
        OutputError: it cannot be made or written into.
    """
    with reported(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder` against other processes that ask the same of it."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; there one run at a time
        yield
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def read_lines(path: Path, *, flag: str) -> list[str]:
    """The lines of a text file in UTF-8, which may begin with a mark, as editors on Windows write it.

    Only a newline ends a line: a prompt may hold other separators, such as U+2028.

    Raises:
        DataError: it cannot be read; the message begins with `flag`.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise DataError(f"{flag} {path} cannot be read: {reason}") from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Says of what goes wrong within that `path` was not written, and why.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} was not written: {error.strerror or error}") from error
    except Exception as error:
        if reason := _foreign_reason(error):
            raise OutputError(f"{path} was not written: {reason}") from error
        raise


def _foreign_reason(error: Exception) -> str | None:
    """Why a file could not be written, where a library in Rust or C++ says so by an error of no exact kind."""
    if found := re.search(r"([^:]+) \(os error \d+\)", str(error)):  # safetensors and tokenizers
        return found[1].strip()
    of_torch = isinstance(error, RuntimeError) and any(sign in str(error) for sign in TORCH_CANNOT_WRITE)
    return "torch could not write all of it; is the disk full?" if of_torch else None
