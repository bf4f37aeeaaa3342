"""The drawings of emoji and icon sets: one object each, in one style, matched to a concept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.picto import draws
from recipes.picto.concepts import TONES, Concept, full_label, icon_concept, plain_hexcode, slug, unicode_slug
from recipes.picto.render import Fragment
from recipes.picto.sources import EMOJI, ICONS

_NAMED_BY_CODE = ("noto", "twemoji", "fluent-flat")  # sets that say which code points each of their names means


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One drawing of one concept in one style: a picture file or a fragment of SVG."""

    name: str  # style/hexcode or style/icon name, unique
    style: str
    concept: Concept
    drawing: Path | Fragment

    @property
    def held_by(self) -> str:
        """What splits are made by: the concept without its variants."""
        return self.concept.base


def list_assets(unpacked: Path, concepts: Mapping[str, Concept], *, without: Iterable[str] = ()) -> list[Asset]:
    """Every drawing that can be used, from the packages below `unpacked`, styles `without` left out."""
    names = _Names(unpacked, concepts)
    assets = [asset for source in EMOJI for asset in _emoji(unpacked, source.style, names)]
    assets += [asset for source in ICONS for asset in _icons(unpacked, source.style)]
    excluded = set(without)
    return [asset for asset in assets if asset.style not in excluded]


class _Names:
    """What concept an icon set means by a name: its own table's, else CLDR's label, else Unicode's name."""

    def __init__(self, unpacked: Path, concepts: Mapping[str, Concept]) -> None:
        self.concepts = concepts
        self.by_slug: dict[str, str] = {}
        self.by_letters: dict[str, str] = {}
        for style in _NAMED_BY_CODE:
            for code, name in _read(unpacked, style, "chars.json").items():
                self.by_slug.setdefault(name, plain_hexcode(code))
        for code, concept in concepts.items():
            self.by_slug.setdefault(slug(full_label(concept)), code)
            if letters := unicode_slug(concept):
                self.by_letters.setdefault(letters, code)
        for name, code in self.by_slug.items():
            self.by_letters.setdefault(name.replace("-", ""), code)

    def concept(self, name: str) -> Concept | None:
        """The concept of a name, or None where none is known."""
        code = self.by_slug.get(name) or self.by_letters.get(name.replace("-", ""))
        return self.concepts.get(code) if code else None

    def concept_of_code(self, code: str) -> Concept | None:
        """The concept of code points as a file's name gives them."""
        return self.concepts.get(plain_hexcode(code))


def _emoji(unpacked: Path, style: str, names: _Names) -> Iterator[Asset]:
    """The first drawing of each concept; the outlined set draws some several times, and all are kept."""
    seen: set[str] = set()
    for name, drawing, concept in _candidates(unpacked, style, names):
        bodies = {drawing.body} if isinstance(drawing, Fragment) else set()
        repeated = (concept.hexcode in seen and style != "outline") or bodies & seen
        if not repeated and _tone_is_kept(style, concept):
            seen |= {concept.hexcode, *bodies}
            ending = name if style == "outline" else concept.hexcode
            yield Asset(name=f"{style}/{ending}", style=style, concept=concept, drawing=drawing)


def _candidates(unpacked: Path, style: str, names: _Names) -> Iterator[tuple[str, Path | Fragment, Concept]]:
    if style == "fluent-3d":
        for path in sorted((unpacked / style / "package" / "assets").glob("*.webp"), key=str):
            if concept := names.concept_of_code(path.stem):
                yield path.stem, path, concept
        return
    for name, drawing in _fragments(unpacked, style):
        plain = re.sub(r"-\d+$", "", name) if style == "outline" else name
        if concept := names.concept(plain):
            yield name, drawing, concept


def _tone_is_kept(style: str, concept: Concept) -> bool:
    """Whether this skin tone is the one this style keeps beside the default; else people would be half of all."""
    if not concept.tone:
        return True
    return style != "fluent-hc" and draws.number("tone", style, concept.base) % 5 == TONES.index(concept.tone)


def _icons(unpacked: Path, style: str) -> Iterator[Asset]:
    for name, drawing in _fragments(unpacked, style, hidden=False):
        if not (style == "kameleon" and name.endswith("-duo")):
            yield Asset(name=f"{style}/{name}", style=style, concept=icon_concept(style, name), drawing=drawing)


def _fragments(unpacked: Path, style: str, *, hidden: bool = True) -> Iterator[tuple[str, Fragment]]:
    """The names and drawings of an Iconify set, by name; those it hides (for it has newer ones) only if asked for."""
    data = _read(unpacked, style, "icons.json")
    width, height = data.get("width", 16), data.get("height", 16)
    for name, icon in sorted(data["icons"].items()):
        if hidden or not icon.get("hidden"):
            box = icon.get("left", 0), icon.get("top", 0), icon.get("width", width), icon.get("height", height)
            yield name, Fragment(body=icon["body"], box=box)


def _read(unpacked: Path, style: str, name: str) -> dict[str, Any]:
    path = unpacked / style / "package" / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
