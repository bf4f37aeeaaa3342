"""Small data sets on disk."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image


def png(color: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (8, 8)) -> bytes:
    """The bytes of a one-coloured picture."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of members in their order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten captioned pictures, whose red is ten times their number."""
    place = tmp_path / "pictures"
    (place / "sub").mkdir(parents=True)
    for i in range(10):
        path = place / ("sub" if i % 2 else "") / f"{i}.png"
        path.write_bytes(png((10 * i, 0, 0)))
        path.with_suffix(".txt").write_text(f"picture {i}\n\nnumber {i}\n")
    return place
