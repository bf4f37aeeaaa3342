"""Pictures and where they go: a folder for each prompt, whole files, and with each picture the recipe that made it.

outputs/manifest.jsonl                          one line for each picture ever written here
outputs/a_red_circle/caption.txt 0.png 0.npy    `0-0.3127.png` where CLIP ranked them, best first
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dalle3.errors import OutputError
from dalle3.files import locked, reported, whole_file
from dalle3.log import note

NUMBERED = re.compile(r"(\d+)(-.*)?\.(png|npy|jpg)")
NAME_CHARACTERS, NAME_BYTES = 100, 240  # file systems take names of 255 bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A picture as the model drew it. It shows itself in a notebook."""

    image: Image.Image
    codes: np.ndarray  # (h, w) int64
    seed: int
    index: int  # which of the seed's pictures: `index=` draws this one alone
    score: float | None = None  # CLIP similarity to the prompt, in [-1, 1], where it was asked for
    recipe: dict[str, Any] = field(default_factory=dict, repr=False)  # everything needed to draw it again
    decoded: Picture | None = None  # what the diffusion decoder made of the same codes, where it was asked for

    def save(self, path: str | os.PathLike[str], *, metadata: bool = True) -> None:
        """Writes the picture, whole or not at all; PNG files also hold the recipe.

        Raises:
            OutputError: the place cannot be written, or its ending names no image format.
        """
        save_image(self.image, Path(path), recipe=self.recipe if metadata else None)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG")
        return buffer.getvalue()


def save_image(image: Image.Image, path: Path, *, recipe: dict[str, Any] | None = None) -> None:
    """Writes a picture, whole or not at all, in the format its name ends in; PNG files also hold the recipe.

    Raises:
        OutputError: the place cannot be written, or its ending names no image format.
    """
    if (kind := Image.registered_extensions().get(path.suffix.lower())) is None:
        raise OutputError(f"{path} does not end in an image format; end it in .png, .jpg or .webp")
    text = {"pnginfo": png_text(recipe)} if kind == "PNG" and recipe is not None else {}
    with whole_file(path) as partial:
        image.save(partial, format=kind, **text)


def png_text(recipe: dict[str, Any]) -> PngInfo:
    """The text chunks of a PNG: `dalle3`, the recipe as JSON, and `parameters`, the line other tools read."""
    info = PngInfo()
    info.add_text("dalle3", json.dumps(recipe, ensure_ascii=False))
    info.add_text("parameters", parameters_line(recipe))
    return info


def parameters_line(recipe: dict[str, Any]) -> str:
    """A recipe in the form of AUTOMATIC1111's web UI, which many viewers of pictures show."""
    weights = next(iter(recipe.get("weights", {}).values()), None) or "unknown"
    facts = {
        "Seed": recipe.get("seed"),
        "Index": recipe.get("index"),
        **{key: value for key, value in recipe.get("settings", {}).items() if value is not None},
        "Size": "x".join(map(str, recipe["size"])) if "size" in recipe else None,
        "Model hash": weights[:10],
        "Version": f"dalle3 {recipe.get('versions', {}).get('dalle3')}",
    }
    return f"{recipe.get('prompt') or ''}\n" + ", ".join(f"{key}: {value}" for key, value in facts.items())


def folder_name(prompt: str) -> str:
    """The first 100 characters of `prompt` as a folder name that any file system takes, blanks as underscores."""
    name = re.sub(r'[\s<>:"/\\|?*\x00-\x1f\x7f]', "_", prompt)[:NAME_CHARACTERS].strip(".")
    while len(name.encode()) > NAME_BYTES:
        name = name[:-1]
    return name or "_"


class Gallery:
    """A folder of outputs. Nothing in it is ever overwritten: new pictures take the numbers after the highest."""

    def __init__(self, root: Path, *, codes: bool = False, metadata: bool = True) -> None:
        """Raises OutputError where `root` is a file."""
        if root.exists() and not root.is_dir():
            raise OutputError(f"{root} is a file; name a folder for the outputs")
        self.root, self.codes, self.metadata = root, codes, metadata
        self.shift: dict[Path, int] = {}  # how far each folder's new numbers are moved up

    def add(self, picture: Picture, *, prompt: str, place: int) -> Path:
        """Writes a picture under number `place`, or the next free ones, and returns the path of its PNG.

        Raises:
            OutputError: the disk is full or the place cannot be written; what was written before stays whole.
        """
        folder = self._folder(prompt)
        with locked(folder):
            number = self._number(folder, place)
            score = "" if picture.score is None else f"-{picture.score:.4f}"
            path = folder / f"{number}{score}.png"
            files = {"file": path}
            if self.codes:
                _save_codes(folder / f"{number}.npy", picture.codes)
            picture.save(path, metadata=self.metadata)
            if picture.decoded is not None:
                picture.decoded.save(decoded := path.with_name(f"{path.stem}-decoded.png"), metadata=self.metadata)
                files["decoded"] = decoded
        if self.metadata:
            line = {name: file.relative_to(self.root).as_posix() for name, file in files.items()} | picture.recipe
            append_line(self.root / "manifest.jsonl", json.dumps(line, ensure_ascii=False))
        return path

    def _folder(self, prompt: str) -> Path:
        """The folder of this prompt: one that begins alike but holds another prompt is left alone."""
        name, number = folder_name(prompt), 1
        while True:
            folder = self.root / (name if number == 1 else f"{name}-{number}")
            caption = folder / "caption.txt"
            if not caption.exists():
                with whole_file(caption) as partial:
                    partial.write_bytes(prompt.encode())  # as text, a carriage return would come back as another prompt
            if caption.read_bytes() == prompt.encode():
                return folder
            number += 1

    def _number(self, folder: Path, place: int) -> int:
        taken = {int(match[1]) for entry in folder.iterdir() if (match := NUMBERED.fullmatch(entry.name))}
        if place + self.shift.get(folder, 0) in taken:
            self.shift[folder] = max(taken) + 1 - place
            note(f"{folder} holds pictures already; numbering on from {max(taken) + 1}")
        return place + self.shift.get(folder, 0)


class BesideInputs:
    """Pictures named after what they are made from: x.npy becomes x.png. Nothing is ever overwritten."""

    def __init__(self, root: Path | None, *, metadata: bool = True) -> None:
        """Takes the folder of the outputs; None is that of each input, and for an address the working one.

        Raises:
            OutputError: `root` is a file.
        """
        if root is not None and root.exists() and not root.is_dir():
            raise OutputError(f"{root} is a file; name a folder for the outputs")
        self.root, self.metadata = root, metadata
        self.previews: dict[tuple[str, int], Path] = {}

    def add(self, picture: Picture, name: str, *, of: int) -> Path:
        """Writes one of the `of` pictures made from the input `name`, in place of its preview, and returns its path.

        x.png for a single picture, x-decoded.png where that is taken, such as by the picture `generate.py` drew
        beside its codes, then x-decoded-2.png; for several x-0.png, x-1.png, and on after those that are taken.

        Raises:
            OutputError: the disk is full or the place cannot be written.
        """
        later = (f"-decoded-{place}" for place in count(2))
        endings = chain(["", "-decoded"], later) if of == 1 else (f"-{place}" for place in count(picture.index))
        stem = self._stem(name)
        with reported(stem):
            stem.parent.mkdir(parents=True, exist_ok=True)
            with locked(stem.parent):
                path = _free(stem, endings)
                picture.save(path, metadata=self.metadata)
        self._forget(name, picture.index)
        return path

    def show(self, image: Image.Image, name: str, index: int, *, of: int) -> None:
        """Writes picture `index` of the `of` of an input as far as it is: x-preview.png, or x-0-preview.png of several.

        Raises:
            OutputError: as `add`.
        """
        stem = self._stem(name)
        ending = "-preview" if of == 1 else f"-{index}-preview"
        with reported(stem):
            path = self.previews.setdefault(
                (name, index), _free(stem, chain([ending], (f"{ending}-{place}" for place in count(2))))
            )
        save_image(image, path)

    def close(self) -> None:
        """Removes the previews of what was not finished."""
        for name, index in list(self.previews):
            self._forget(name, index)

    def _forget(self, name: str, index: int) -> None:
        if path := self.previews.pop((name, index), None):
            path.unlink(missing_ok=True)

    def folder(self, name: str) -> Path:
        """Where the pictures made from the input `name` go."""
        return self.root or (Path() if "://" in name else Path(name).parent)

    def _stem(self, name: str) -> Path:
        return self.folder(name) / Path(name.split("?")[0]).stem


def _free(stem: Path, endings: Iterable[str]) -> Path:
    """The first PNG that is not there yet, of `stem` with one of the endings."""
    paths = (stem.with_name(f"{stem.name}{ending}.png") for ending in endings)
    return next(path for path in paths if not path.exists())


def append_line(path: Path, line: str) -> None:
    """Adds one line to the end of a file, whole or not at all, also while others append.

    Raises:
        OutputError: the disk is full or the file cannot be written.
    """
    data = line.encode() + b"\n"
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            before = os.fstat(file).st_size
            if os.write(file, data) != len(data):  # a full disk takes the part that fits
                os.ftruncate(file, before)
                raise OutputError(f"{path} was not written: no space left on device")
        finally:
            os.close(file)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} was not written: {error.strerror or error}") from error


def _save_codes(path: Path, codes: np.ndarray) -> None:
    with whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, codes.astype(np.int64).reshape(-1), allow_pickle=False)
