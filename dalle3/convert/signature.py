"""What the first bytes of a file say it is, whatever its name says."""

from __future__ import annotations

import zipfile
from pathlib import Path

from dalle3.errors import CheckpointError

DESCRIPTIONS = {
    "folder": "a folder",
    "empty": "an empty file",
    "torch": "a PyTorch archive",
    "torchscript": "a TorchScript archive",
    "cut_zip": "a zip archive that ends too early (the copy or download is incomplete; fetch it again)",
    "zip": "a zip archive that PyTorch did not write",
    "npz": "an .npz archive of NumPy arrays",
    "pickle": "a pickle",
    "safetensors": "a safetensors file",
    "npy": "a NumPy array (.npy)",
    "png": "a PNG picture",
    "jpeg": "a JPEG picture",
    "html": "a web page (HTML), not weights: the download met a login or error page; fetch it again",
    "lfs": "a Git LFS pointer, not the file itself; run `git lfs pull`",
    "gzip": "a gzip archive; unpack it first",
    "tar": "a tar archive; unpack it first",
    "xml": "an XML text, not weights: the download met an error page; fetch it again",
    "json": "a JSON text",
    "text": "a text",
    "unknown": "neither a PyTorch file nor safetensors",
}

_MAGIC = (
    (b"\x93NUMPY", "npy"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x1f\x8b", "gzip"),
    (b"version https://git-lfs", "lfs"),
)
_HEAD = 4096


def looks_like(path: Path) -> str:
    """The kind of `path`, a key of `DESCRIPTIONS`, told from its content.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
    """
    if path.is_dir():
        return "folder"
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    return _kind_of_bytes(head, path.stat().st_size)


def not_weights(path: Path, kind: str, *, wanted: str = "a file of weights") -> CheckpointError:
    """The error for a file that is of `kind`, a key of `DESCRIPTIONS`, where `wanted` was expected."""
    return CheckpointError(f"{path} is {DESCRIPTIONS[kind]}; expected {wanted}")


def _kind_of_bytes(head: bytes, size: int) -> str:
    if not head:
        return "empty"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5:
        return "pickle"
    if head[257:262] == b"ustar":
        return "tar"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < max(size, 100_000_000):
        return "safetensors"
    return _kind_of_text(head)


def _kind_of_text(head: bytes) -> str:
    if b"\0" in head:
        return "unknown"
    text = head.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n").lower()
    if "\ufffd" in text[:-3]:
        return "unknown"
    if text.startswith("<?xml"):
        return "xml"
    if text.startswith(("<!doctype", "<html", "<head", "<!--")):
        return "html"
    return "json" if text.startswith(("{", "[")) else "text"


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError):
        return "cut_zip"
    if any(name.endswith("/data.pkl") for name in names):
        return "torchscript" if any("/code/" in name for name in names) else "torch"
    return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"
