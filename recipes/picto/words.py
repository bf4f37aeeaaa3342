"""English for captions: noun phrases of concepts, articles, plurals."""

from __future__ import annotations

import re

from recipes.picto.concepts import Concept
from recipes.picto.vocabulary import COLORS, SYMBOLS

# CLDR's names that are not what one would call the picture.
_RENAMED = {
    "locked": "padlock",
    "unlocked": "open padlock",
    "locked with key": "padlock with a key",
    "locked with pen": "padlock with a pen",
    "foggy": "foggy city",
    "night with stars": "starry night",
    "chart increasing": "rising chart",
    "chart decreasing": "falling chart",
    "airplane departure": "departing airplane",
    "airplane arrival": "landing airplane",
    "video game": "game controller",
    "performing arts": "theater masks",
    "automobile": "car",
    "hot beverage": "cup of coffee",
    "cooking": "frying pan with an egg",
    "curry rice": "curry with rice",
    "shallow pan of food": "pan of food",
    "articulated lorry": "lorry",
    "custard": "custard pudding",
    "fire engine": "fire truck",
    "mobile phone": "smartphone",
    "pine decoration": "bamboo decoration",
    "cityscape at dusk": "city at dusk",
    "wrapped gift": "gift box",
    "horse racing": "racing horse",
    "clutch bag": "clutch purse",
    "rescue worker’s helmet": "rescue helmet",  # noqa: RUF001  # CLDR spells it so
    "pick": "pickaxe",
    "oncoming automobile": "oncoming car",
    "oil drum": "oil barrel",
    "lady beetle": "ladybug",
}
_WITH = {"beard": "a beard", "blond hair": "blond hair", "bald": "a bald head"}
_KEEPS_CAPITALS = re.compile(
    r"\b(Japan|Christmas|Mrs|Santa|Fuji|Liberty|Tokyo|French|Saturn|Shinto|Hindu|Ferris|DNA|CD|DVD|ON|SOON)\b"
)
_SAYS_WHAT_IT_IS = re.compile(r"heart|arrow|circle|square|diamond|star|button|sign|symbol|mark")

_MASS = (
    "bread bacon butter rice salt fire ice honey broccoli garlic ginger root sushi spaghetti tofu jewelry luggage fog "
    "snow rain wood rock money mail soap thread yarn sake milk tea coffee air fingerprint"
)
MASS = frozenset(_MASS.split())
_NO_ARTICLE = frozenset(
    {
        "ice hockey",
        "field hockey",
        "lacrosse",
        "curling",
        "ping pong",
        "badminton",
        "cricket game",
        "bowling",
        "sunrise over mountains",
        "bridge at night",
        "city at dusk",
        "custard pudding",
        "curry with rice",
        "hot springs",
    }
)
_PROPER = re.compile(r"^(statue of liberty|mount fuji|tokyo tower|map of japan|japan$|kaaba)", re.I)
_QUANTIFIED = ("the ", "one ", "two ", "people ", "men ", "women ", "hundred")
_AFTER_HEAD = re.compile(
    r" (?:of|with|in|on|at|from|wearing|pushing|behind|getting|taking|facing|showing|without|over|and) "
)
_VOWEL_SOUND = re.compile(r"^[aeio]|^u(?!n[i]|ni|se|k)|^hour|^x-ray")
_NO_VOWEL_SOUND = re.compile(r"^(one|euro|ewe|uni|eu)")
_PLURAL_HEADS = frozenset({"people", "men", "women", "skis"})
_SINGULAR_IN_S = frozenset({"bus", "tennis", "canvas", "atlas", "gas", "claus", "rhinoceros"})
_PLURALS = {
    "mouse": "mice",
    "wolf": "wolves",
    "leaf": "leaves",
    "knife": "knives",
    "goose": "geese",
    "ox": "oxen",
    "sheep": "sheep",
    "fish": "fish",
    "deer": "deer",
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "calf": "calves",
    "tooth": "teeth",
    "foot": "feet",
    "squid": "squid",
    "shrimp": "shrimp",
}
_COLOR_WORDS = re.compile(
    r"\b(" + "|".join([*COLORS, "grey", "golden", "dark", "light", "rainbow", "colour", "color"]) + r")\b ?"
)


def noun(concept: Concept) -> str:
    """What a concept is called, a noun phrase without article, such as "padlock with a key"."""
    name = _RENAMED.get(concept.label, concept.label)
    name = name.replace("’", "'").replace("“", "").replace("”", "")  # noqa: RUF001
    name = name.replace(": facing right", " facing right").replace("facing right facing right", "facing right")
    if concept.hexcode and ": " in name:
        whole, part = name.split(": ", 1)
        name = f"{whole} with {_WITH.get(part, part)}"
    if not _KEEPS_CAPITALS.search(name):
        name = name.lower()
    name = re.sub(r"\s*\(.*?\)", "", name).strip(", ")
    if re.search(r"o'clock$|-thirty$", name):
        name = f"clock showing {name}"
    return f"{name} symbol" if concept.group == SYMBOLS and not _SAYS_WHAT_IT_IS.search(name) else name


def head(phrase: str) -> str:
    """The word a noun phrase is about: "wolf" of "grey wolf with a hat"."""
    return _AFTER_HEAD.split(phrase)[0].split()[-1]


def is_plural(phrase: str) -> bool:
    """Whether a noun phrase looks like a plural."""
    word = head(phrase)
    return word in _PLURAL_HEADS or (bool(re.search(r"[^su'i]s$", word)) and word not in _SINGULAR_IN_S)


def with_article(phrase: str) -> str:
    """The noun phrase with "a" or "an" before it, or as it is where it takes none."""
    if phrase in _NO_ARTICLE or head(phrase) in MASS or is_plural(phrase) or _PROPER.match(phrase):
        return phrase
    if phrase.startswith(_QUANTIFIED):
        return phrase
    lower = phrase.lower()
    return ("an " if _VOWEL_SOUND.match(lower) and not _NO_VOWEL_SOUND.match(lower) else "a ") + phrase


def with_plain_article(phrase: str) -> str:
    """The phrase with "a" or "an" by its first letter alone."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(phrase: str) -> str:
    """The plural of a noun phrase whose last word is its head."""
    rest, _, word = phrase.rpartition(" ")
    return f"{rest} {_PLURALS.get(word) or _regular_plural(word)}".strip()


def without_colors(phrase: str) -> str:
    """The phrase without its words for colours, or as it is where nothing would be left."""
    return _COLOR_WORDS.sub("", phrase).strip() or phrase


def names_a_color(phrase: str) -> bool:
    """Whether the phrase says a colour."""
    return bool(_COLOR_WORDS.search(phrase))


def _regular_plural(word: str) -> str:
    if re.search(r"(s|x|z|ch|sh)$", word) or word in ("potato", "tomato", "mango"):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"
