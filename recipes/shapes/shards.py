"""Writes coloured shapes as WebDataset tars, the form in which any of the peers can train on them too."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Sequence
from itertools import count, islice
from pathlib import Path

from dalle3.files import whole_file
from recipes.shapes.scenes import Kind, Scene, captions, render, scene
from recipes.shapes.source import of_sort


def write(
    folder: Path,
    number: int,
    *,
    size: int = 128,
    kinds: Sequence[Kind] = (),
    sizes: Sequence[str] = (),
    background: str | None = None,
) -> list[Path]:
    """The tars written: `number` training scenes, and scenes of withheld couples (a fiftieth, at least 200).

    Args:
        size: side of the pictures in pixels.
        kinds, sizes, background: of the scenes and of all their objects; none given means any.
    """

    def first(wanted: int, split: str, *, withheld: bool) -> list[Scene]:
        drawn = (scene(f"{split}{i}", withheld=withheld) for i in count())
        return list(islice(of_sort(drawn, kinds=kinds, sizes=sizes, background=background), wanted))

    training = first(number, "train", withheld=False)
    withheld = first(max(200, number // 50), "heldout_bind", withheld=True)
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
