"""The list of samples to make: what each shows and which split it belongs to, before anything is drawn."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import ClassVar

from recipes.picto import draws, splits
from recipes.picto.assets import Asset
from recipes.picto.clipart import ClipArt
from recipes.picto.vocabulary import BACKGROUNDS, HUES, INKS, NUMBERS, THINGS
from recipes.picto.words import MASS, is_plural, noun

RELATIONS = ("left", "right", "above", "below")
KINDS = ("single", "bg", "hue", "glyph", "badge", "pair", "cpair", "count", "char", "clip")

_MONOCHROME = ("game-icon", "fluent-hc")
_RECOLORABLE = ("fluent-flat", "twemoji", "noto", "fluent-3d", "fluent-color", "emojione")
_SCENE_STYLES = ("fluent-3d", "fluent-color", "fluent-flat", "noto", "noto-blob", "twemoji", "emojione")
_SCENE_SEED = 20240601
_GLYPH_BACKGROUNDS = ("light gray", "light yellow", "light blue", "light pink", "black")
_RECOLORED_BACKGROUNDS = ("white", "white", "light gray", "light yellow", "light blue")
_OFTEN_WHITE = ("white", "white", "white", *BACKGROUNDS)
_NO_SOLID_THING = re.compile(
    r"(ing|ed|ty|gy)$|o'clock|symbol|with|sunrise|sunset|night|dusk|hockey|rink|map|balance|-thirty|moon|sign|card|keycap"
)


@dataclass(frozen=True)
class Scene:
    """What a picture shows. Assets are indices into the list the plan was made from.

    Its fields, in order, seed every draw made while it is drawn: their order and form are part of the data set.
    """

    kind: ClassVar[str]

    def rng(self) -> random.Random:
        """The generator of this scene's wording and jitter."""
        return random.Random(draws.number("r", self.kind, *astuple(self)))


@dataclass(frozen=True)
class Single(Scene):
    """One object on white."""

    kind: ClassVar[str] = "single"
    asset: int


@dataclass(frozen=True)
class OnBackground(Scene):
    """One object on a coloured background."""

    kind: ClassVar[str] = "bg"
    asset: int
    background: str


@dataclass(frozen=True)
class Badge(Scene):
    """One object in a coloured circle or rounded square."""

    kind: ClassVar[str] = "badge"
    asset: int
    background: str
    shape: str


@dataclass(frozen=True)
class Recolored(Scene):
    """One object in another colour, on white."""

    kind: ClassVar[str] = "hue"
    asset: int
    color: str


@dataclass(frozen=True)
class Glyph(Scene):
    """One monochrome object in a colour on a background."""

    kind: ClassVar[str] = "glyph"
    asset: int
    color: str
    background: str


@dataclass(frozen=True)
class Pair(Scene):
    """Two objects beside or above each other; `sizes` is "", "sb" (small, big) or "bs"."""

    kind: ClassVar[str] = "pair"
    first: int
    second: int
    relation: str
    sizes: str
    background: str
    seed: int


@dataclass(frozen=True)
class Count(Scene):
    """An object 2 to 6 times."""

    kind: ClassVar[str] = "count"
    asset: int
    number: int
    background: str
    seed: int


@dataclass(frozen=True)
class RecoloredPair(Scene):
    """The first two of the candidates that can take the two colours, beside or above each other."""

    kind: ClassVar[str] = "cpair"
    candidates: tuple[int, ...]
    relation: str
    colors: tuple[str, str]
    background: str
    seed: int


@dataclass(frozen=True)
class Character(Scene):
    """A DiceBear character: style and seed."""

    kind: ClassVar[str] = "char"
    style: str
    number: int


@dataclass(frozen=True)
class Clip(Scene):
    """A picture of the clip art library."""

    kind: ClassVar[str] = "clip"
    number: int


@dataclass(frozen=True)
class Planned:
    """A scene, its split, and its number, which names the sample."""

    number: int
    split: str
    scene: Scene


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How many scenes of each unlimited kind are tried; some cannot be drawn as their caption says and are dropped."""

    pairs: int = 14_000
    counts: int = 5_000
    recolored_pairs: int = 10_000
    characters: tuple[tuple[str, int], ...] = (
        ("open-peeps", 1500),
        ("personas", 1200),
        ("toon-head", 900),
        ("big-smile", 600),
        ("critters", 1500),
        ("sprouts", 1200),
        ("voxel-art", 1200),
        ("voxel-bot", 700),
        ("landscape", 800),
        ("planets", 800),
        ("fun-emoji", 300),
        ("cutouts", 300),
    )


def plan(
    assets: Sequence[Asset],
    clips: Sequence[ClipArt],
    *,
    kinds: Collection[str] = KINDS,
    amounts: Amounts = Amounts(),
    without: Collection[str] = (),
) -> list[Planned]:
    """Every sample to make, in the shuffled order in which shards hold them.

    Args:
        kinds: which kinds of scenes; leaving one out changes the draws of those after it.
        without: styles of characters to leave out.
    """
    withheld = splits.withheld_styles(assets)
    scenes = [entry for entry in _objects(assets, withheld) if entry[1].kind in kinds]
    things = things_by_style(assets, withheld)
    rng = random.Random(_SCENE_SEED)
    if things:
        scenes += _pairs(assets, things, amounts.pairs if "pair" in kinds else 0, rng)
        scenes += _counts(assets, things, amounts.counts if "count" in kinds else 0, rng)
        scenes += _recolored_pairs(things, amounts.recolored_pairs if "cpair" in kinds else 0, rng)
    if "char" in kinds:
        scenes += _characters(amounts, without)
    if "clip" in kinds:
        scenes += [(splits.share_of_val(clip.name, "vo"), Clip(index)) for index, clip in enumerate(clips)]
    planned = [Planned(number, split, scene) for number, (split, scene) in enumerate(scenes)]
    return sorted(planned, key=lambda sample: draws.number("order", sample.number))


_Scenes = Iterator[tuple[str, Scene]]


def _objects(assets: Sequence[Asset], withheld: Mapping[str, frozenset[str]]) -> _Scenes:
    """The scenes with one object, of each asset in turn; from drawings not in training only the object on white."""
    for index, asset in enumerate(assets):
        split = splits.drawing_split(asset, withheld)
        if asset.style != "game-icon":
            yield split, Single(index)
        if split != splits.TRAIN:
            continue
        if asset.style in _MONOCHROME:
            yield from _glyphs(index, asset)
        elif not asset.concept.tone and asset.style != "kameleon":
            yield from _variants(index, asset)


def _glyphs(index: int, asset: Asset) -> _Scenes:
    number = 3 if asset.style == "fluent-hc" and asset.concept.group in THINGS else 1
    for color in draws.shuffled(INKS, "gc", asset.name)[:number]:
        # Game icons have names, not concepts: no couple of theirs is withheld.
        split = splits.color_split(asset, color) if asset.style == "fluent-hc" else splits.TRAIN
        yield split, Glyph(index, color, _glyph_background(asset, color))


def _glyph_background(asset: Asset, color: str) -> str:
    if draws.fraction("gb", asset.name, color) < 0.6:
        return "white"
    return _GLYPH_BACKGROUNDS[draws.number("gB", asset.name, color) % len(_GLYPH_BACKGROUNDS)]


def _variants(index: int, asset: Asset) -> _Scenes:
    """The object on a background (55 %), in a badge (20 %), in two other colours."""
    if draws.fraction("bgq", asset.name) < 0.55:
        colors = [color for color in BACKGROUNDS if color != "white"]
        yield splits.TRAIN, OnBackground(index, draws.shuffled(colors, "bg", asset.name)[0])
    if draws.fraction("bdq", asset.name) < 0.2:
        colors = [color for color in BACKGROUNDS if color not in ("white", "light gray")]
        shape = ("circle", "rounded square")[draws.number("bs", asset.name) % 2]
        yield splits.TRAIN, Badge(index, draws.shuffled(colors, "bd", asset.name)[0], shape)
    if asset.concept.group in THINGS and asset.style in _RECOLORABLE:
        for color in draws.shuffled(HUES, "hue", asset.name)[:2]:
            yield splits.color_split(asset, color), Recolored(index, color)


def things_by_style(assets: Sequence[Asset], withheld: Mapping[str, frozenset[str]]) -> list[list[int]]:
    """The training drawings that can stand in a scene, one list for each style that has enough, by style."""
    found: dict[str, list[int]] = {style: [] for style in _SCENE_STYLES}
    for index, asset in enumerate(assets):
        trained = splits.drawing_split(asset, withheld) == splits.TRAIN
        if trained and asset.style in found and asset.concept.group in THINGS and is_solid(noun(asset.concept)):
            found[asset.style].append(index)
    return [found[style] for style in sorted(found) if len(found[style]) > 30]


def is_solid(name: str) -> bool:
    """Whether the name is short and of a countable thing with an outline."""
    if len(name.split()) > 2 or is_plural(name) or name.split()[-1] in MASS:
        return False
    return "face" not in name and not _NO_SOLID_THING.search(name)


def _pairs(assets: Sequence[Asset], things: Sequence[list[int]], number: int, rng: random.Random) -> _Scenes:
    for turn in range(number):
        first, second = rng.sample(things[turn % len(things)], 2)
        relation, sizes = rng.choice(RELATIONS), rng.choice(("", "", "sb", "bs"))
        scene = Pair(first, second, relation, sizes, rng.choice(_OFTEN_WHITE), rng.randrange(1 << 30))
        yield splits.pair_split(assets[first], assets[second]), scene


def _counts(assets: Sequence[Asset], things: Sequence[list[int]], number: int, rng: random.Random) -> _Scenes:
    for turn in range(number):
        asset, times = rng.choice(things[turn % len(things)]), rng.randint(min(NUMBERS), max(NUMBERS))
        scene = Count(asset, times, rng.choice(_OFTEN_WHITE), rng.randrange(1 << 30))
        yield splits.count_split(assets[asset], times), scene


def _recolored_pairs(things: Sequence[list[int]], number: int, rng: random.Random) -> _Scenes:
    for turn in range(number):
        candidates, relation = tuple(rng.sample(things[turn % len(things)], 24)), rng.choice(RELATIONS)
        colors = _two_colors(rng)
        yield (
            splits.TRAIN,
            RecoloredPair(candidates, relation, colors, rng.choice(_RECOLORED_BACKGROUNDS), rng.randrange(1 << 30)),
        )


def _two_colors(rng: random.Random) -> tuple[str, str]:
    """Two different colours, or in 15 % one twice, so that the second does not give the first away."""
    if rng.random() < 0.85:
        first, second = rng.sample(HUES, 2)
        return first, second
    color = rng.choice(HUES)
    return color, color


def _characters(amounts: Amounts, without: Collection[str]) -> _Scenes:
    for style, number in amounts.characters:
        if style not in without:
            for index in range(number):
                yield splits.share_of_val(index, "vc", style), Character(style, index)
