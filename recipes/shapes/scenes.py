"""Scenes of coloured shapes: what is in them, what they look like, and how one would describe them.

A scene is a function of its seed. Eight couples of shape and colour never occur in training scenes, so that a
model can be asked for a picture whose parts it knows and whose combination it has never seen.
"""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
COLORS = {
    "red": (214, 40, 40),
    "orange": (245, 133, 28),
    "yellow": (248, 208, 30),
    "green": (46, 150, 62),
    "blue": (38, 96, 214),
    "purple": (128, 60, 184),
    "pink": (244, 128, 184),
    "brown": (122, 74, 38),
    "black": (24, 24, 26),
    "gray": (128, 130, 134),
}
SIZES = {"small": 0.17, "medium": 0.27, "large": 0.40}  # side of the object / side of the picture
BACKGROUNDS = {
    "white": (255, 255, 255),
    "light gray": (226, 228, 231),
    "light blue": (202, 226, 250),
    "light yellow": (253, 245, 200),
    "light green": (208, 240, 208),
    "light pink": (253, 218, 230),
}
RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
WITHHELD = (
    ("circle", "gray"),
    ("cross", "orange"),
    ("diamond", "brown"),
    ("heart", "green"),
    ("ring", "red"),
    ("square", "yellow"),
    ("star", "purple"),
    ("triangle", "pink"),
)
Kind = Literal["one", "two", "count"]

_CENTRES = {
    "left": ((0.27, 0.5), (0.73, 0.5)),
    "right": ((0.73, 0.5), (0.27, 0.5)),
    "above": ((0.5, 0.27), (0.5, 0.73)),
    "below": ((0.5, 0.73), (0.5, 0.27)),
}
_GROUPS = {
    2: [(0.28, 0.5), (0.72, 0.5)],
    3: [(0.5, 0.26), (0.26, 0.72), (0.74, 0.72)],
    4: [(0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72)],
    5: [(0.22, 0.22), (0.78, 0.22), (0.5, 0.5), (0.22, 0.78), (0.78, 0.78)],
}
_SUPERSAMPLING = 4


@dataclass(frozen=True, kw_only=True)
class Object:
    """One shape; `x` and `y` are its centre in parts of the picture's side."""

    shape: str
    color: str
    size: str
    x: float = 0.5
    y: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One object, two in a relation (the first is `relation` of the second), or several of one kind."""

    kind: Kind
    background: str
    objects: tuple[Object, ...]
    relation: str | None = None


def scene(seed: int | str, *, kind: Kind | None = None, withheld: bool = False) -> Scene:
    """The scene of one seed, of any kind unless `kind` is given.

    With `withheld`, the first object is one of the couples that training never shows; without, none is.
    Python's own generator draws it, because the published benchmark did and its seeds must mean the same.
    """
    rng = random.Random(f"s{seed}")
    kind = kind or rng.choice(["one", "two", "two", "two", "count"])
    background = rng.choice(["white"] * 3 + list(BACKGROUNDS)[1:])
    couple = rng.choice(WITHHELD) if withheld else None
    if kind == "one":
        objects = (_moved(_draw_object(rng, couple), (0.5, 0.5), 0.08, rng),)
        return Scene(kind=kind, background=background, objects=objects)
    if kind == "count":
        return Scene(kind=kind, background=background, objects=_draw_group(rng, couple))
    relation, objects = _draw_pair(rng, couple)
    return Scene(kind=kind, background=background, objects=objects, relation=relation)


def render(what: Scene, size: int = 128) -> Image.Image:
    """The picture of a scene, `size` pixels square."""
    picture = Image.new("RGB", (size, size), BACKGROUNDS[what.background])
    for thing in what.objects:
        side = round(SIZES[thing.size] * size)
        corner = (round(thing.x * size - side / 2), round(thing.y * size - side / 2))
        picture.paste(COLORS[thing.color], corner, mask(thing.shape, side))
    return picture


def captions(what: Scene) -> list[str]:
    """All captions of a scene; the first names everything there is to know, the others leave something out."""
    place = "" if what.background == "white" else f" on a {what.background} background"
    first = what.objects[0]
    if what.kind == "one":
        phrases = [name(first), name(first, with_size=False), f"a picture of {name(first)}"]
    elif what.kind == "count":
        phrases = _group_phrases(first, len(what.objects))
    else:
        assert what.relation is not None
        phrases = _pair_phrases(first, what.objects[1], what.relation)
    return [phrase + place for phrase in phrases]


def name(thing: Object, *, with_size: bool = True) -> str:
    """The object with its article: "a small red circle"; medium is the size that goes without saying."""
    size = [thing.size] if with_size and thing.size != "medium" else []
    words = " ".join([*size, thing.color, thing.shape])
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@lru_cache(maxsize=512)
def mask(shape: str, side: int) -> Image.Image:
    """The antialiased outline of a shape that fills a box of `side` pixels; 255 is inside."""
    box = side * _SUPERSAMPLING
    large = Image.new("L", (box, box))
    draw = ImageDraw.Draw(large)
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, box - 1, box - 1), fill=255)
    if shape == "ring":
        draw.ellipse((0.27 * box, 0.27 * box, 0.73 * box, 0.73 * box), fill=0)
    elif shape == "square":
        draw.rectangle((0, 0, box, box), fill=255)
    elif shape != "circle":
        draw.polygon([(x * box, y * box) for x, y in _outline(shape)], fill=255)
    return large.resize((side, side), Image.Resampling.LANCZOS)


def distinct_captions() -> dict[str, int]:
    """How many different first captions each kind of scene has, without the withheld couples being left out."""
    couples, objects = len(SHAPES) * len(COLORS), len(SHAPES) * len(COLORS) * len(SIZES)
    pairs = (objects**2 - couples * len(SIZES) ** 2) * len(RELATIONS)
    counts = {"one": objects, "count": couples * len(NUMBERS), "two": pairs}
    return {kind: number * len(BACKGROUNDS) for kind, number in counts.items()}


def _draw_object(rng: random.Random, couple: tuple[str, str] | None = None) -> Object:
    while True:
        shape, color = couple or (rng.choice(SHAPES), rng.choice(list(COLORS)))
        if couple or (shape, color) not in WITHHELD:
            return Object(shape=shape, color=color, size=rng.choice(list(SIZES)))


def _draw_group(rng: random.Random, couple: tuple[str, str] | None) -> tuple[Object, ...]:
    number = rng.randint(2, 5)
    thing = dataclasses.replace(_draw_object(rng, couple), size="small")
    return tuple(_moved(thing, centre, 0.05, rng) for centre in _GROUPS[number])


def _draw_pair(rng: random.Random, couple: tuple[str, str] | None) -> tuple[str, tuple[Object, ...]]:
    first, second = _draw_object(rng, couple), _draw_object(rng)
    while (first.shape, first.color) == (second.shape, second.color):
        second = _draw_object(rng)
    relation = rng.choice(list(RELATIONS))
    placed = zip((first, second), _CENTRES[relation], strict=True)
    return relation, tuple(_moved(thing, centre, 0.03, rng) for thing, centre in placed)


def _moved(thing: Object, centre: tuple[float, float], reach: float, rng: random.Random) -> Object:
    x, y = (position + rng.uniform(-reach, reach) for position in centre)
    return dataclasses.replace(thing, x=x, y=y)


def _group_phrases(thing: Object, number: int) -> list[str]:
    plural = f"{thing.color} {thing.shape}{'es' if thing.shape == 'cross' else 's'}"
    word = NUMBERS[number]
    return [f"{word} {plural}", f"{number} {plural}", f"a group of {word} {plural}"]


def _pair_phrases(first: Object, second: Object, relation: str) -> list[str]:
    forth, back = RELATIONS[relation], RELATIONS[OPPOSITE[relation]]
    return [
        f"{name(first)} {forth} {name(second)}",
        f"{name(second)} {back} {name(first)}",
        f"{name(first)} and {name(second)}",
        f"{name(first, with_size=False)} {forth} {name(second, with_size=False)}",
    ]


def _outline(shape: str) -> list[tuple[float, float]]:
    if shape == "triangle":
        return [(0.5, 0), (1, 1), (0, 1)]
    if shape == "diamond":
        return [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)]
    if shape == "cross":
        a, b = 0.34, 0.66
        return [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]
    return _star() if shape == "star" else _heart()


def _star() -> list[tuple[float, float]]:
    radii = [1 if corner % 2 == 0 else 0.42 for corner in range(10)]
    x = [math.sin(i * math.pi / 5) * radius for i, radius in enumerate(radii)]
    y = [-math.cos(i * math.pi / 5) * radius for i, radius in enumerate(radii)]
    return [((a - min(x)) / (max(x) - min(x)), (b - min(y)) / (max(y) - min(y))) for a, b in zip(x, y, strict=True)]


def _heart() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 200)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return list(zip((x - x.min()) / np.ptp(x), (y - y.min()) / np.ptp(y), strict=True))
