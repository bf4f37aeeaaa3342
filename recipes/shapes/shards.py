"""Writes coloured shapes as WebDataset tars, the form in which any of the peers can train on them too."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

from dalle3.files import whole_file
from recipes.shapes.scenes import Scene, captions, render, scene


def write(folder: Path, number: int, *, size: int = 128) -> list[Path]:
    """The tars written: `number` training scenes, and scenes of withheld couples (a fiftieth, at least 200)."""
    training = [scene(f"train{i}") for i in range(number)]
    withheld = [scene(f"heldout_bind{i}", withheld=True) for i in range(max(200, number // 50))]
    return [_write(folder, "train", training, size), _write(folder, "heldout_bind", withheld, size)]


def _write(folder: Path, split: str, scenes: list[Scene], size: int) -> Path:
    path = folder / f"shapes-{split}-00000.tar"
    with whole_file(path) as partial, tarfile.open(partial, "w") as tar:
        for index, what in enumerate(scenes):
            for suffix, content in _files(what, size).items():
                member = tarfile.TarInfo(f"shapes-{split}-{index:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def _files(what: Scene, size: int) -> dict[str, bytes]:
    picture, texts = io.BytesIO(), captions(what)
    render(what, size).save(picture, "PNG")
    about = {"captions": texts, "scene": dataclasses.asdict(what), "license": "generated"}
    return {"png": picture.getvalue(), "txt": texts[0].encode(), "json": json.dumps(about).encode()}
