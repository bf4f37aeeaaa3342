"""Where objects stand in a scene of `render.SIDE` pixels."""

from __future__ import annotations

import random
from typing import NamedTuple

from recipes.picto.render import SIDE


class Place(NamedTuple):
    """The centre of a square object and its width, in pixels."""

    x: float
    y: float
    width: int


_BESIDE = ((64, 128), (192, 128))
_PAIRS = {
    "left": _BESIDE,
    "right": _BESIDE[::-1],
    "above": ((128, 64), (128, 192)),
    "below": ((128, 192), (128, 64)),
}
_WIDTHS = {"": (126, 126), "sb": (76, 150), "bs": (150, 76)}
_COUNTS = {
    2: ((64, 128), (192, 128)),
    3: ((128, 66), (66, 186), (190, 186)),
    4: ((66, 66), (190, 66), (66, 190), (190, 190)),
    5: ((52, 58), (204, 58), (128, 128), (52, 198), (204, 198)),
    6: ((46, 80), (128, 80), (210, 80), (46, 176), (128, 176), (210, 176)),
}
_COUNT_WIDTHS = {2: 116, 3: 104, 4: 110, 5: 84, 6: 78}


def pair(relation: str, sizes: str) -> tuple[Place, Place]:
    """The places of two objects, the first being `relation` of the second; `sizes` is "", "sb" or "bs"."""
    (x, y), (other_x, other_y) = _PAIRS[relation]
    width, other_width = _WIDTHS[sizes]
    return Place(x, y, width), Place(other_x, other_y, other_width)


def recolored_pair(relation: str) -> tuple[Place, Place]:
    """The places of two objects of one size."""
    (x, y), (other_x, other_y) = _PAIRS[relation]
    return Place(x, y, 124), Place(other_x, other_y, 124)


def count(number: int, rng: random.Random) -> list[Place]:
    """The places of 2 to 6 objects; two may stand above each other and three in a row."""
    width, points = _COUNT_WIDTHS[number], _COUNTS[number]
    if number == 2 and rng.random() < 0.5:
        points = tuple((y, x) for x, y in points)
    elif number == 3 and rng.random() < 0.5:
        points, width = ((44, 128), (128, 128), (212, 128)), 80
    return [Place(x, y, width) for x, y in points]


def jittered(place: Place, rng: random.Random, *, by: float, margin: float) -> Place:
    """The place moved by up to `by` pixels each way, kept whole within the picture."""
    x, y = place.x + rng.uniform(-by, by), place.y + rng.uniform(-by, by)
    return Place(_within(x, place.width, margin), _within(y, place.width, margin), place.width)


def moved(place: Place, rng: random.Random, relation: str) -> Place:
    """The place moved a little, less along the line that joins the pair, for its objects nearly touch."""
    across = 8 if relation in ("left", "right") else 2
    return Place(place.x + rng.uniform(-2, 2), place.y + rng.uniform(-across, across), place.width)


def _within(centre: float, width: int, margin: float) -> float:
    return min(max(centre, width / 2 + margin), SIDE - margin - width / 2)
