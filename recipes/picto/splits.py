"""What training never sees, decided by names alone: styles of a concept, colours of an object, couples, counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from recipes.picto import draws
from recipes.picto.assets import Asset
from recipes.picto.concepts import Concept
from recipes.picto.vocabulary import THINGS

TRAIN, VAL = "train", "val"
STYLE, PAIR, COLOR, COUNT = "heldout_style", "heldout_pair", "heldout_color", "heldout_count"
HELD_OUT = (STYLE, COLOR, PAIR, COUNT)
SPLITS = (TRAIN, VAL, *HELD_OUT)

_ONE_WITHHELD = ("fluent-3d", "fluent-flat", "noto", "twemoji", "emojione")
_FAMILY = ("fluent-3d", "fluent-color", "fluent-flat", "fluent-hc")  # one drawing four times


def withheld_styles(assets: Iterable[Asset]) -> dict[str, frozenset[str]]:
    """For each concept's base, the styles in which training never sees it, alone or in a scene."""
    styles: dict[str, set[str]] = defaultdict(set)
    first: dict[str, Concept] = {}
    for asset in assets:
        styles[asset.held_by].add(asset.style)
        first.setdefault(asset.held_by, asset.concept)
    return {base: _withheld(first[base], styles[base]) for base in styles}


def drawing_split(asset: Asset, withheld: Mapping[str, frozenset[str]]) -> str:
    """The split of every picture made from one drawing: 2 % of the drawings are for validation."""
    if asset.style in withheld[asset.held_by]:
        return STYLE
    return share_of_val(asset.name, "val")


def share_of_val(name: object, *purpose: object) -> str:
    """Validation for 2 % of the names, training for the others."""
    return VAL if draws.fraction(*purpose, name) < 0.02 else TRAIN


def color_split(asset: Asset, color: str) -> str:
    """Withheld for 6 % of the couples of object and colour."""
    return COLOR if draws.fraction("hc", asset.held_by, color) < 0.06 else TRAIN


def pair_split(one: Asset, other: Asset) -> str:
    """Withheld for 4 % of the couples of objects, whichever comes first."""
    return PAIR if draws.fraction("hp", *sorted([one.held_by, other.held_by])) < 0.04 else TRAIN


def count_split(asset: Asset, number: int) -> str:
    """Withheld for 4 % of the couples of object and number."""
    return COUNT if draws.fraction("hn", asset.held_by, number) < 0.04 else TRAIN


def _withheld(concept: Concept, styles: set[str]) -> frozenset[str]:
    """Of the things drawn in four styles or more, one style for 12 %, the whole Fluent family for 6 %."""
    if concept.group not in THINGS or concept.tone or concept.hexcode != concept.base:
        return frozenset()
    candidates = [style for style in _ONE_WITHHELD if style in styles]
    if len(candidates) < 4:
        return frozenset()
    chance = draws.fraction("ho", concept.base)
    if chance < 0.12:
        return frozenset({candidates[draws.number("hs", concept.base) % len(candidates)]})
    return frozenset(_FAMILY) & styles if chance < 0.18 else frozenset()
