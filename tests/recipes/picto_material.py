"""A small material for picto: drawings made here, in the styles and with the licences of the real packages."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from recipes.picto.assets import Asset
from recipes.picto.clipart import ClipArt
from recipes.picto.concepts import Concept
from recipes.picto.plan import Amounts
from recipes.picto.render import Drawings
from recipes.picto.scenes import Material

SCENE_STYLES = ("fluent-3d", "fluent-color", "fluent-flat", "noto", "noto-blob", "twemoji", "emojione")
STYLES = (*SCENE_STYLES, "fxemoji", "fluent-hc", "game-icon")
COLORS = {"red": (220, 40, 45), "green": (60, 165, 70), "blue": (45, 105, 220), "black": (30, 30, 32)}
_ANIMALS = "wolf fox bear cat dog owl duck goose mouse ox crab snail frog lion tiger horse cow pig goat camel"
ANIMALS = _ANIMALS.split()
PLACES = ("field", "city")
SMALL = Amounts(pairs=300, counts=300, recolored_pairs=60, characters=())


def concepts() -> list[Concept]:
    """Forty animals, each a thing of its own."""
    names = [f"{place} {animal}" for place in PLACES for animal in ANIMALS]
    return [_concept(f"{index:04x}", name) for index, name in enumerate(names)]


def assets(folder: Path) -> list[Asset]:
    """Every concept in every style, as blobs in one of four colours."""
    files = [_blob(folder / f"{color}.png", color) for color in COLORS]
    return [
        Asset(
            name=f"{style}/{concept.hexcode}", style=style, concept=concept, drawing=files[(turn + place) % len(files)]
        )
        for turn, style in enumerate(STYLES)
        for place, concept in enumerate(concepts())
    ]


def material(folder: Path, *, clips: tuple[ClipArt, ...] = ()) -> Material:
    """The assets, and an empty folder for what is rendered from them."""
    return Material(assets=assets(folder), clips=clips, drawings=Drawings(folder / "drawings"))


def _concept(code: str, name: str) -> Concept:
    return Concept(hexcode=code, base=code, label=name, group=3, subgroup="animal-mammal", tags=("tail", "legs"))


def _blob(path: Path, color: str) -> Path:
    image = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    pen.rectangle((8, 6, 55, 41), fill=(*COLORS[color], 255))
    pen.rectangle((12, 10, 20, 18), fill=(255, 255, 255, 255))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path
