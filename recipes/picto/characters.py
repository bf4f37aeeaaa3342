"""DiceBear characters: drawn from a seed, described from the options the seed resolved to."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from recipes.picto.colors import to_hex
from recipes.picto.creatures import CREATURES
from recipes.picto.people import PEOPLE
from recipes.picto.portraits import Description, Options
from recipes.picto.render import SIDE
from recipes.picto.vocabulary import BACKGROUNDS
from recipes.picto.words import with_article

if TYPE_CHECKING:
    from dicebear import Style  # type: ignore[import-not-found]  # only in the build's environment

DESCRIBERS = {**PEOPLE, **CREATURES}
PHRASES = {
    "open-peeps": "hand drawn portrait",
    "personas": "flat portrait",
    "toon-head": "cartoon portrait",
    "big-smile": "funny cartoon head",
    "critters": "cartoon monster",
    "sprouts": "cartoon potted plant",
    "voxel-art": "voxel art",
    "voxel-bot": "voxel art",
    "landscape": "minimal landscape",
    "planets": "space illustration",
    "fun-emoji": "flat emoji",
    "cutouts": "paper cutout",
}
_GIVEN_BACKGROUND = ("open-peeps", "personas", "toon-head", "big-smile")  # they have none of their own
_PALE = ("light blue", "light green", "light yellow", "light pink", "light purple", "light orange")
_NO_BACKGROUND = ("landscape", "planets", "fun-emoji")  # the picture is the background


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """An SVG document, its captions and the options that made it."""

    svg: str
    captions: list[str]
    attributes: dict[str, Any]


class Studio:
    """Draws characters; each style's definition is read once, when first asked for."""

    def __init__(self) -> None:
        self._styles: dict[str, tuple[Style, bool]] = {}

    def portray(self, style: str, number: int, rng: random.Random) -> Portrait:
        """Character `number` of a style; `rng` chooses its background and what its short captions say."""
        from dicebear import Avatar  # type: ignore[import-not-found]

        definition, moves = self._style(style)
        chosen = {"seed": f"s{number}", "size": SIDE, **_background(style, rng)}
        if moves:
            chosen["animationVariant"] = ["none"]
        avatar = Avatar(definition, chosen).to_json()
        options = Options(avatar["options"])
        lines = captions(style, DESCRIBERS[style](options), background=background_name(style, options), rng=rng)
        return Portrait(svg=avatar["svg"], captions=lines, attributes=_attributes(options.raw))

    def _style(self, name: str) -> tuple[Style, bool]:
        """The style's definition, and whether its pictures move unless told not to."""
        from dicebear import Style  # type: ignore[import-not-found]

        if name not in self._styles:
            definition = json.loads(files("dicebear_styles").joinpath(f"{name}.json").read_text("utf8"))
            self._styles[name] = Style(definition), "animation" in definition["components"]
        return self._styles[name]


def captions(style: str, description: Description, *, background: str, rng: random.Random) -> list[str]:
    """A character's captions: all attributes first, then some of them."""
    who, parts, mood = description.who, description.parts, description.mood
    behind = "" if background in ("", "white") else f" on a {background} background"
    # With a single part its mood follows without a space. That is a flaw, kept because the data set's bytes are pinned.
    comma = ", " if len(parts) > 1 else ""
    full = f"{who} {''.join(parts[:1])}{comma}{', '.join(parts[1:] + mood)}{behind}"
    some = parts[:]
    rng.shuffle(some)
    phrase, short = PHRASES[style], f"{who} {''.join(some[:1])}"
    return [
        f"{full}, {phrase}",
        f"{with_article(phrase)} of {full}",
        f"{who} {' and '.join(some[:2])}, {phrase}",
        f"{short}{behind}, {phrase}",
        f"{with_article(phrase)} of {short}",
        full,
    ]


def background_name(style: str, options: Options) -> str:
    """The nearest named background to the character's; "" where it has none."""
    rgb = options.rgb("background")
    if rgb is None or style in _NO_BACKGROUND:
        return ""
    return min(BACKGROUNDS, key=lambda name: sum((a - b) ** 2 for a, b in zip(BACKGROUNDS[name], rgb, strict=True)))


def _background(style: str, rng: random.Random) -> dict[str, list[str]]:
    if style not in _GIVEN_BACKGROUND or rng.random() >= 0.5:
        return {}
    return {"backgroundColor": [to_hex(BACKGROUNDS[rng.choice(_PALE)])]}


def _attributes(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that show: which form and colour each part has."""
    return {
        name: value
        for name, value in options.items()
        if name.endswith(("Variant", "Color")) and not name.startswith("star") and name != "animationVariant"
    }
