"""How reliable the checker is: its scores on pictures that are right, worn, and wrong."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from recipes.shapes.check import check
from recipes.shapes.scenes import OPPOSITE, Scene, render, scene

Wear = Callable[[Image.Image], Image.Image]


def report(number: int) -> list[str]:
    """One line for each kind of wear and of mistake, with the mean of every score over `number` scenes."""
    lines = []
    scenes = [scene(i, withheld=i % 4 == 0) for i in range(number)]
    for size in (64, 128, 256):
        for label, worn in _wears(size).items():
            pairs = [(worn(render(what, size)), what) for what in scenes]
            lines.append(f"{size} px, {label}: {mean(pairs)}")
    pairs = [scene(i, kind="two") for i in range(number)]
    lines.append(f"another picture: {mean([(render(scene(i + 7), 128), what) for i, what in enumerate(pairs)])}")
    lines.append(f"relation inverted: {mean([(render(what), inverted(what)) for what in pairs])}")
    lines.append(f"colours swapped: {mean([(render(what), swapped(what)) for what in pairs if _differ(what)])}")
    return lines


def mean(pairs: list[tuple[Image.Image, Scene]]) -> str:
    """The mean of every score over pictures and the scenes they should show, as text."""
    scores = [check(picture, what) for picture, what in pairs]
    names = {name: None for score in scores for name in score}
    return ", ".join(f"{name} {np.mean([s[name] for s in scores if name in s]):.3f}" for name in names)


def inverted(what: Scene) -> Scene:
    """The scene with the relation of its two objects turned round, their places unchanged."""
    assert what.relation is not None
    return dataclasses.replace(what, relation=OPPOSITE[what.relation])


def swapped(what: Scene) -> Scene:
    """The scene with the colours of its two objects exchanged."""
    first, second = what.objects
    colors = (dataclasses.replace(first, color=second.color), dataclasses.replace(second, color=first.color))
    return dataclasses.replace(what, objects=colors)


def _differ(what: Scene) -> bool:
    first, second = what.objects
    return first.color != second.color and first.shape != second.shape


def _wears(size: int) -> dict[str, Wear]:
    rng = np.random.default_rng(0)
    half = (size // 2, size // 2)
    return {
        "clean": lambda picture: picture,
        "noise of 12 levels": lambda picture: _noisy(picture, rng),
        "blur of 1 %": lambda picture: picture.filter(ImageFilter.GaussianBlur(size / 100)),
        "JPEG quality 40": _compressed,
        "half resolution": lambda picture: picture.resize(half).resize(picture.size),
    }


def _noisy(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    noise = rng.normal(0, 12, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(np.asarray(picture, np.float32) + noise, 0, 255).astype(np.uint8))


def _compressed(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=40)
    return Image.open(file)
