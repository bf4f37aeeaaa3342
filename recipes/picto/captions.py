"""Captions of drawn scenes: the canonical one first, then paraphrases.

`rng` chooses among a style's phrases; the order of its draws is part of the data set.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence

from recipes.picto.assets import Asset
from recipes.picto.concepts import Concept
from recipes.picto.vocabulary import HYPERNYMS, NUMBERS, PEOPLE, STYLES, THINGS
from recipes.picto.words import names_a_color, noun, plural, with_article, with_plain_article, without_colors

RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_SIDES = {
    "left": ("on the left", "on the right"),
    "right": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}


def tidy(captions: Iterable[str]) -> list[str]:
    """The captions with single spaces, each once."""
    return list(dict.fromkeys(re.sub(r"\s+", " ", caption).strip() for caption in captions))


def name_of(concept: Concept) -> str:
    """The noun phrase of a concept; an icon that is no emoji goes by its file's name."""
    return noun(concept) if concept.hexcode else concept.label


def phrase_of(concept: Concept) -> str:
    """The name with its article; names of icons that are no emoji take none, for they may be anything."""
    return with_article(noun(concept)) if concept.hexcode else concept.label


def single(asset: Asset, shares: Mapping[str, float], rng: random.Random) -> list[str]:
    """One object on white; `shares` are those of its colours."""
    concept, styles = asset.concept, STYLES[asset.style]
    skin = f" with {concept.tone.replace('-', ' ')} skin" if concept.tone else ""
    bare, phrase = name_of(concept) + skin, phrase_of(concept) + skin
    captions = [f"{phrase}, {style}" for style in styles]
    captions += [f"{with_plain_article(styles[0])} of {phrase}"]
    captions += [f"{with_plain_article(rng.choice(styles))} showing {phrase}"]
    captions += [f"{bare}, {rng.choice(styles)}, white background", phrase]
    captions += [f"{phrase} on a white background, {styles[0]}"]
    captions += _with_hypernym(concept, styles[0])
    captions += _with_keywords(concept, phrase, styles[0], rng)
    if not concept.tone and not names_a_color(name_of(concept)) and concept.group != PEOPLE:
        captions += _with_colors(concept, shares, styles[0])
    return captions


def on_background(concept: Concept, background: str, style: str, rng: random.Random) -> list[str]:
    """One object on a coloured background."""
    phrase, styles = phrase_of(concept), STYLES[style]
    return [
        f"{phrase} on a {background} background, {styles[0]}",
        f"{phrase}, {styles[0]}, {background} background",
        f"{with_article(styles[0])} of {phrase} on a plain {background} background",
        f"{phrase} against a {background} backdrop, {rng.choice(styles)}",
        f"{phrase}, {background} background",
    ]


def badge(concept: Concept, background: str, shape: str, *, style: str, rng: random.Random) -> list[str]:
    """One object in a coloured shape."""
    phrase, styles = phrase_of(concept), STYLES[style]
    captions = [
        f"{phrase} inside a {background} {shape}, {styles[0]}",
        f"{phrase} in a {background} {shape} on a white background, {styles[0]}",
        f"a {background} {shape} badge with {phrase}, {rng.choice(styles)}",
    ]
    if shape != "circle":
        captions += [f"app icon of {phrase} on a {background} rounded square, {styles[0]}"]
    return captions


def recolored(concept: Concept, color: str, style: str, rng: random.Random) -> list[str]:
    """One object in another colour than its own."""
    name, styles = without_colors(noun(concept)), STYLES[style]
    phrase = with_article(f"{color} {name}")
    return [
        f"{phrase}, {styles[0]}",
        f"{with_article(styles[0])} of {phrase}",
        f"{phrase}, {rng.choice(styles)}, white background",
        f"{with_article(name)} colored {color}, {styles[0]}",
        phrase,
    ]


def glyph(concept: Concept, color: str, background: str, *, style: str, rng: random.Random) -> list[str]:
    """One monochrome object in a colour on a background."""
    phrase, styles = phrase_of(concept), STYLES[style]
    captions = [
        f"{with_plain_article(color)} {styles[0]} of {phrase} on a {background} background",
        f"{phrase}, {color} {styles[0]}, {background} background",
        f"{with_article(f'{color} {name_of(concept)}')}, {styles[0]}, {background} background",
        f"{phrase} in {color}, {rng.choice(styles)}",
    ]
    if background == "white":
        captions += [f"{with_plain_article(color)} {rng.choice(styles)} of {phrase}"]
    return captions


def pair(names: Sequence[str], relation: str, background: str, *, style: str, rng: random.Random) -> list[str]:
    """Two objects, `names` being their noun phrases with sizes."""
    one, other = (with_article(name) for name in names)
    styles, place, sides = STYLES[style], _place(background), _SIDES[relation]
    return [
        f"{one} {RELATIONS[relation]} {other}{place}, {styles[0]}",
        f"{other} {RELATIONS[INVERSE[relation]]} {one}{place}, {styles[0]}",
        f"{one} {sides[0]} and {other} {sides[1]}{place}, {rng.choice(styles)}",
        f"{one} and {other}{place}, {styles[0]}",
        f"{one} {RELATIONS[relation].removeprefix('to the ')} {other}{place}",
    ]


def count(name: str, number: int, background: str, *, style: str, rng: random.Random) -> list[str]:
    """One object several times."""
    several, styles, place = plural(name), STYLES[style], _place(background)
    return [
        f"{NUMBERS[number]} {several}{place}, {styles[0]}",
        f"{number} {several}{place}, {styles[0]}",
        f"a group of {NUMBERS[number]} {several}{place}, {rng.choice(styles)}",
        f"{with_article(styles[0])} of {NUMBERS[number]} {several}{place}",
    ]


def recolored_pair(
    names: Sequence[str], relation: str, background: str, *, style: str, rng: random.Random
) -> list[str]:
    """Two objects in colours of their own, `names` being their noun phrases with colours."""
    one, other = (with_article(name) for name in names)
    styles, place = STYLES[style], _place(background)
    return [
        f"{one} {RELATIONS[relation]} {other}{place}, {styles[0]}",
        f"{other} {RELATIONS[INVERSE[relation]]} {one}{place}, {styles[0]}",
        f"{one} and {other}{place}, {styles[0]}",
        f"{other} and {one}{place}, {rng.choice(styles)}",
        f"{one} next to {other}{place}",
    ]


def clip(title: str, words: str) -> list[str]:
    """A picture of the clip art library with its title, folder and keywords."""
    phrase = with_article(title)
    return [
        f"{phrase}, clip art",
        f"clip art of {phrase}",
        f"{title}, {STYLES['clip'][1]}",
        f"{title} ({words}), clip art",
        f"{title}, {words}, clip art",
    ]


def _place(background: str) -> str:
    return "" if background == "white" else f" on a {background} background"


def _with_hypernym(concept: Concept, style: str) -> list[str]:
    kind = HYPERNYMS.get(concept.subgroup.replace("-", " "))
    if not kind or kind in name_of(concept):
        return []
    return [f"{phrase_of(concept)}, {with_article(kind)}, {style}"]


def _with_keywords(concept: Concept, phrase: str, style: str, rng: random.Random) -> list[str]:
    name = name_of(concept).lower()
    tags = [tag for tag in concept.tags if tag.isascii() and tag.isalpha() and len(tag) > 2 and tag.lower() not in name]
    if not tags:
        return []
    chosen = ", ".join(rng.sample(tags, min(2, len(tags)))).lower()
    return [f"{phrase} ({chosen}), {style}"]


def _with_colors(concept: Concept, shares: Mapping[str, float], style: str) -> list[str]:
    """Captions with the colour of most of the object, if one has 55 %, and with its two or three largest."""
    if not shares:
        return []
    captions, (color, share) = [], next(iter(shares.items()))
    if share >= 0.55:
        phrase = with_article(f"{color} {name_of(concept)}")
        captions += [f"{phrase}, {style}", f"{with_plain_article(style)} of {phrase}"]
    large = [color for color, share in shares.items() if share >= 0.14][:3]
    if len(large) >= 2 and concept.group in THINGS:
        captions += [f"{phrase_of(concept)} in {', '.join(large[:-1])} and {large[-1]}, {style}"]
    return captions
