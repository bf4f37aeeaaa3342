"""Draws planned scenes: a picture, its captions and what is known about it.

A scene is dropped where its picture would not show what its captions say, such as an object lost in its background.
Everything is composed at `render.SIDE` pixels and made smaller at the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from recipes.picto import captions, layout
from recipes.picto.assets import Asset
from recipes.picto.characters import Studio
from recipes.picto.clipart import ClipArt
from recipes.picto.colors import main_color, name_rgb, recolored, shares_of, to_hex
from recipes.picto.plan import (
    Badge,
    Character,
    Clip,
    Count,
    Glyph,
    OnBackground,
    Pair,
    Recolored,
    RecoloredPair,
    Scene,
    Single,
)
from recipes.picto.render import SIDE, Drawings, RenderError, render_object, render_svg
from recipes.picto.sources import BY_STYLE, CLIP_ART
from recipes.picto.splits import TRAIN, color_split
from recipes.picto.vocabulary import BACKGROUNDS, COLORS, GROUPS, RGB
from recipes.picto.words import noun, without_colors

_MIDDLE = SIDE / 2
_SIZE_WORDS = {"": ("", ""), "sb": ("small", "big"), "bs": ("big", "small")}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture (RGB, SIDE x SIDE), its captions, canonical first, and its attributes."""

    image: Image.Image
    captions: list[str]
    about: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Material:
    """What scenes are made from."""

    assets: Sequence[Asset]
    clips: Sequence[ClipArt]
    drawings: Drawings
    studio: Studio = field(default_factory=Studio)


def draw(scene: Scene, material: Material) -> Drawn | None:
    """The scene as a picture with captions; None where it cannot be shown as captioned.

    Raises:
        RenderError: resvg cannot draw one of its objects.
    """
    return _DRAW[type(scene)](scene, material, scene.rng())


def _single(scene: Single, material: Material, rng: random.Random) -> Drawn | None:
    asset = material.assets[scene.asset]
    image = material.drawings.object(asset)
    if image is None:
        return None
    shares = shares_of(image)
    about = _about_asset(asset) | {"colors": _largest(shares)}
    return Drawn(image=_centred(image), captions=captions.single(asset, shares, rng), about=about)


def _on_background(scene: OnBackground, material: Material, rng: random.Random) -> Drawn | None:
    asset = material.assets[scene.asset]
    image = material.drawings.object(asset)
    if image is None:
        return None
    shares = shares_of(image)
    captions.single(asset, shares, rng)  # its draws come before those below in the data set as published
    if _is_lost(shares, scene.background):
        return None
    width = rng.choice((256, 230, 200))
    return Drawn(
        image=_pasted(BACKGROUNDS[scene.background], [(image, layout.Place(_MIDDLE, _MIDDLE, width))]),
        captions=captions.on_background(asset.concept, scene.background, asset.style, rng),
        about=_about_asset(asset) | {"colors": _largest(shares), "background": scene.background},
    )


def _badge(scene: Badge, material: Material, rng: random.Random) -> Drawn | None:
    asset = material.assets[scene.asset]
    image = material.drawings.object(asset)
    if image is None:
        return None
    shares = shares_of(image)
    captions.single(asset, shares, rng)  # its draws come before those below in the data set as published
    if _is_lost(shares, scene.background):
        return None
    lines = captions.badge(asset.concept, scene.background, scene.shape, style=asset.style, rng=rng)
    about = {"colors": _largest(shares), "shape": scene.shape, "background": scene.background}
    image = _in_shape(image, scene.shape, BACKGROUNDS[scene.background])
    return Drawn(image=image, captions=lines, about=_about_asset(asset) | about)


def _recolored(scene: Recolored, material: Material, rng: random.Random) -> Drawn | None:
    asset = material.assets[scene.asset]
    image = material.drawings.object(asset)
    image = recolored(image, scene.color) if image else None
    if image is None:
        return None
    lines = captions.recolored(asset.concept, scene.color, asset.style, rng)
    return Drawn(image=_centred(image), captions=lines, about=_about_asset(asset) | {"color": scene.color})


def _glyph(scene: Glyph, material: Material, rng: random.Random) -> Drawn | None:
    if scene.color == scene.background:
        return None
    asset = material.assets[scene.asset]
    image = render_object(asset.drawing, ink=to_hex(COLORS[scene.color]))
    if image is None:
        return None
    lines = captions.glyph(asset.concept, scene.color, scene.background, style=asset.style, rng=rng)
    about = _about_asset(asset) | {"color": scene.color, "background": scene.background}
    return Drawn(image=_centred(image, BACKGROUNDS[scene.background]), captions=lines, about=about)


def _pair(scene: Pair, material: Material, rng: random.Random) -> Drawn | None:
    assets, jitter = [material.assets[scene.first], material.assets[scene.second]], random.Random(scene.seed)
    items = []
    for asset, place in zip(assets, layout.pair(scene.relation, scene.sizes), strict=True):
        image = material.drawings.object(asset)
        if image is None or (scene.background != "white" and _is_lost(shares_of(image), scene.background)):
            return None
        items.append((image, layout.jittered(place, jitter, by=8, margin=4 if scene.sizes else 2)))
    names, sizes = [noun(asset.concept) for asset in assets], _SIZE_WORDS[scene.sizes]
    sized = [f"{size} {name}".strip() for size, name in zip(sizes, names, strict=True)]
    about = {"objects": names, "relation": scene.relation, "sizes": list(sizes), "background": scene.background}
    return Drawn(
        image=_pasted(BACKGROUNDS[scene.background], items),
        captions=captions.pair(sized, scene.relation, scene.background, style=assets[0].style, rng=rng),
        about=_about_scene(assets) | about,
    )


def _count(scene: Count, material: Material, rng: random.Random) -> Drawn | None:
    asset, jitter = material.assets[scene.asset], random.Random(scene.seed)
    image = material.drawings.object(asset)
    if image is None or (scene.background != "white" and _is_lost(shares_of(image), scene.background)):
        return None
    places = [layout.jittered(place, jitter, by=5, margin=1) for place in layout.count(scene.number, jitter)]
    name = noun(asset.concept)
    about = {"objects": [name], "count": scene.number, "background": scene.background}
    return Drawn(
        image=_pasted(BACKGROUNDS[scene.background], [(image, place) for place in places]),
        captions=captions.count(name, scene.number, scene.background, style=asset.style, rng=rng),
        about=_about_scene([asset]) | about,
    )


def _recolored_pair(scene: RecoloredPair, material: Material, rng: random.Random) -> Drawn | None:
    found = _two_recolored(scene, material)
    if len(found) < 2:
        return None
    assets = [asset for asset, _ in found]
    names = [without_colors(noun(asset.concept)) for asset in assets]
    if names[0] == names[1]:
        return None
    places, jitter = layout.recolored_pair(scene.relation), random.Random(scene.seed)
    moved = [layout.moved(place, jitter, scene.relation) for place in places]
    colored = [f"{color} {name}" for color, name in zip(scene.colors, names, strict=True)]
    about = {"objects": names, "colors2": list(scene.colors), "relation": scene.relation}
    return Drawn(
        image=_pasted(
            BACKGROUNDS[scene.background], [(image, at) for (_, image), at in zip(found, moved, strict=True)]
        ),
        captions=captions.recolored_pair(colored, scene.relation, scene.background, style=assets[0].style, rng=rng),
        about=_about_scene(assets) | about | {"background": scene.background},
    )


def _two_recolored(scene: RecoloredPair, material: Material) -> list[tuple[Asset, Image.Image]]:
    """The first candidates, two at most, that can take the two colours in turn; none in a colour withheld from it."""
    found: list[tuple[Asset, Image.Image]] = []
    for asset in (material.assets[index] for index in scene.candidates):
        if len(found) == 2:
            break
        color = scene.colors[len(found)]
        if color_split(asset, color) != TRAIN:
            continue
        image = material.drawings.object(asset)
        if image is None:
            return []
        image = image if _is_mostly(shares_of(image), color) else recolored(image, color)
        if image is not None:
            found.append((asset, image))
    return found


def _character(scene: Character, material: Material, rng: random.Random) -> Drawn | None:
    portrait = material.studio.portray(scene.style, scene.number, rng)
    source = BY_STYLE[scene.style]
    image = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 255))
    image.alpha_composite(render_svg(portrait.svg, SIDE, SIDE))
    about = {"style": scene.style, "package": source.label, "license": source.licence}
    about |= {"attributes": portrait.attributes}
    return Drawn(image=image.convert("RGB"), captions=portrait.captions, about=about)


def _clip(scene: Clip, material: Material, rng: random.Random) -> Drawn | None:
    clip = material.clips[scene.number]
    try:
        image = render_svg(clip.read(), 384)
    except RenderError:  # of a thousand files drawn by hand over the years, some are broken
        return None
    image = _fitted(image)
    if image is None:
        return None
    about = {"style": CLIP_ART.style, "concept": clip.title, "package": CLIP_ART.label, "license": CLIP_ART.licence}
    about |= {"author": clip.author, "asset": clip.name}
    return Drawn(image=image, captions=captions.clip(clip.title, clip.words), about=about)


_DRAW: Mapping[type[Scene], Callable[[Any, Material, random.Random], Drawn | None]] = {
    Single: _single,
    OnBackground: _on_background,
    Badge: _badge,
    Recolored: _recolored,
    Glyph: _glyph,
    Pair: _pair,
    Count: _count,
    RecoloredPair: _recolored_pair,
    Character: _character,
    Clip: _clip,
}


def _about_asset(asset: Asset) -> dict[str, Any]:
    source, concept = BY_STYLE[asset.style], asset.concept
    return {
        "style": asset.style,
        "concept": concept.label,
        "hex": concept.hexcode,
        "group": GROUPS[concept.group] if concept.hexcode else "icon",
        "tone": concept.tone,
        "package": source.label,
        "license": source.licence,
        "asset": asset.name,
    }


def _about_scene(assets: Sequence[Asset]) -> dict[str, Any]:
    source = BY_STYLE[assets[0].style]
    return {
        "style": source.style,
        "package": source.label,
        "license": source.licence,
        "assets": [asset.name for asset in assets],
    }


def _largest(shares: Mapping[str, float]) -> dict[str, float]:
    return {color: round(share, 2) for color, share in list(shares.items())[:4]}


def _is_lost(shares: Mapping[str, float], background: str) -> bool:
    """Whether most of an object has the colour of its background."""
    return shares.get(name_rgb(*BACKGROUNDS[background]), 0) > 0.6


def _is_mostly(shares: Mapping[str, float], color: str) -> bool:
    return main_color(shares) == color and shares[color] >= 0.55


def _centred(image: Image.Image, background: RGB = BACKGROUNDS["white"]) -> Image.Image:
    return _pasted(background, [(image, layout.Place(_MIDDLE, _MIDDLE, SIDE))])


def _pasted(background: RGB, items: Iterable[tuple[Image.Image, layout.Place]]) -> Image.Image:
    """The square objects on a background, RGB (SIDE, SIDE)."""
    canvas = Image.new("RGBA", (SIDE, SIDE), (*background, 255))
    for image, at in items:
        if image.width != at.width:
            image = image.resize((at.width, at.width), Image.Resampling.LANCZOS)
        canvas.alpha_composite(image, (round(at.x - at.width / 2), round(at.y - at.width / 2)))
    return canvas.convert("RGB")


def _in_shape(image: Image.Image, shape: str, color: RGB) -> Image.Image:
    """The object in a coloured shape on white; the shape is drawn twice as large, so that its edge is smooth."""
    canvas = Image.new("RGBA", (SIDE * 2, SIDE * 2), (255, 255, 255, 255))
    pen, box = ImageDraw.Draw(canvas), (24, 24, 488, 488)
    if shape == "circle":
        pen.ellipse(box, fill=(*color, 255))
    else:
        pen.rounded_rectangle(box, 100, fill=(*color, 255))
    canvas, width = canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS), 172
    small = image.resize((width, width), Image.Resampling.LANCZOS)
    canvas.alpha_composite(small, ((SIDE - width) // 2, (SIDE - width) // 2))
    return canvas.convert("RGB")


def _fitted(image: Image.Image) -> Image.Image | None:
    """The drawing on white, 230 pixels long; None where it is nearly empty, a sliver or nearly white."""
    drawn = np.asarray(image)[..., 3] > 8
    if drawn.mean() < 0.005:
        return None
    image = image.crop(Image.fromarray((drawn * 255).astype("uint8")).getbbox())
    if max(image.size) < 24 or max(image.size) / max(1, min(image.size)) > 5:
        return None
    scale = 230 / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image, canvas = image.resize(size, Image.Resampling.LANCZOS), Image.new("RGBA", (SIDE, SIDE), (255,) * 4)
    canvas.alpha_composite(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    result = canvas.convert("RGB")
    return result if np.asarray(result).std() >= 6 else None
