"""What DiceBear's monsters, plants, robots, faces and places look like; variants unnamed here are left unsaid."""

from __future__ import annotations

from collections.abc import Mapping

from recipes.picto.portraits import Describer, Description, Options, having, said
from recipes.picto.words import with_article

_CRITTER_TOPS = {
    "horns": "two horns",
    "horns in": "curved horns",
    "horns small": "small horns",
    "spike": "one spike",
    "antenna": "one antenna",
    "antennae": "two antennae",
    "ears round": "round ears",
    "ears pointy": "pointy ears",
    "ears droop": "droopy ears",
    "spikes": "spikes on its head",
    "fin": "a fin",
    "crown": "a crown",
    "sprout": "a sprout on its head",
    "bobble": "a bobble on its head",
}
_CRITTER_EYES = {
    "mono": "one eye",
    "mono sleepy": "one sleepy eye",
    "trio": "three eyes",
    "three row": "three eyes",
    "four": "four eyes",
}
_CRITTER_PATTERNS = {
    "dots": "dots on its body",
    "speckles": "speckles on its body",
    "bars": "bars on its body",
    "stripes": "stripes on its body",
    "belly": "a belly patch",
    "spot": "a spot on its body",
    "chevron": "chevrons on its body",
    "ring": "a ring on its body",
}
_CRITTER_MOUTHS = {
    "smile": "smiling",
    "tiny smile": "smiling",
    "grin": "grinning",
    "laugh": "laughing",
    "frown": "frowning",
    "sad": "sad",
    "tongue": "with its tongue out",
    "open": "with mouth open",
    "teeth": "showing teeth",
    "zigzag": "with a zigzag mouth",
}


def _critters(options: Options) -> Description:
    eyes = options.variant("eyes")
    parts = said(
        having(_CRITTER_TOPS.get(options.variant("top"), "")),
        having(_CRITTER_EYES.get(eyes, "")),
        having(_CRITTER_PATTERNS.get(options.variant("pattern"), "")),
    )
    mood = said(_CRITTER_MOUTHS.get(options.variant("mouth"), ""), eyes if eyes in ("angry", "sleepy") else "")
    return Description(f"a {options.color('body')} monster", parts, mood)


_SPROUT_PLANTS = {
    "ball": "round bush",
    "buds": "plant with buds",
    "tall": "tall plant",
    "grass": "tuft of grass",
    "palm": "small palm",
}
_SPROUT_POTS = {"bowl": "bowl", "tub": "tub", "bag": "bag", "round": "round pot", "cylinder": "cylindrical pot"}
_SPROUT_PATTERNS = {"band": "a band", "ring": "a ring"}
_SPROUT_MOUTHS = {
    "smile": "a smiling face",
    "tiny smile": "a smiling face",
    "grin": "a grinning face",
    "frown": "a frowning face",
    "open": "an open mouth",
    "tongue": "its tongue out",
}


def _sprouts(options: Options) -> Description:
    plant, pattern = options.variant("plant"), options.variant("pattern")
    bloom = options.color("bloom") if plant in ("flower", "tulip") else ""
    parts = said(
        f"in a {options.color('pot')} {_SPROUT_POTS.get(options.variant('pot'), 'pot')}",
        having(_SPROUT_PATTERNS.get(pattern, pattern)),
        having(_SPROUT_MOUTHS.get(options.variant("mouth"), "")),
    )
    return Description(" ".join(said("a", bloom, _SPROUT_PLANTS.get(plant, plant))), parts)


_BOT_EYES = {
    "cyclops": "one eye",
    "round": "round eyes",
    "square": "square eyes",
    "visor": "a visor",
    "happy": "happy eyes",
    "sleepy": "sleepy eyes",
    "plus": "plus shaped eyes",
}
_BOT_TOPS = {
    "antenna": "an antenna on its head",
    "twin": "two antennas on its head",
    "dish": "a satellite dish on its head",
    "fin": "a fin on its head",
    "lightbar": "a light bar on its head",
    "siren": "a siren on its head",
    "studs": "studs on its head",
}
_BOT_CHESTS = {
    "heart": "a heart on its chest",
    "screen": "a screen on its chest",
    "dial": "a dial on its chest",
    "buttons": "buttons on its chest",
    "vents": "vents on its chest",
}


def _voxel_bot(options: Options) -> Description:
    parts = said(
        having(_BOT_EYES.get(options.variant("eyes"), "")),
        having(_BOT_TOPS.get(options.variant("top"), "")),
        having(_BOT_CHESTS.get(options.variant("chest"), "")),
    )
    return Description(f"a {options.color('body')} robot", parts)


_HILLS = {"peak": "mountain peaks", "mesa": "mesas", "dunes": "dunes", "ridge": "mountain ridges"}


def _landscape(options: Options) -> Description:
    colors = said(*(options.color(f"hill{number}") for number in (1, 2, 3, 4)))
    first = list(dict.fromkeys(colors))[:2] or ["green"]
    sun = options.color("orb")
    parts = said(f"in {' and '.join(first)}", sun and f"under {with_article(sun)} sun")
    return Description(_HILLS.get(options.variant("hill1"), "rolling hills"), parts)


_SURFACES = {
    "banded": "bands",
    "belted": "belts",
    "cratered": "craters",
    "swirl": "swirls",
    "cap": "a polar cap",
    "spotted": "spots",
    "marbled": "a marbled surface",
    "cracked": "cracks",
    "terra": "continents",
    "speckled": "speckles",
}
_RINGS = {"thin": "with a thin ring", "double": "with a double ring", "bold": "with a thick ring"}
_MOONS = {"one": "and one moon", "two": "and two moons", "tiny": "and a tiny moon"}


def _planets(options: Options) -> Description:
    parts = said(
        having(_SURFACES.get(options.variant("surface"), "")),
        _RINGS.get(options.variant("ring"), "without rings"),
        _MOONS.get(options.variant("moons"), ""),
        "in a dark starry sky",
    )
    return Description(f"a {options.color('planet')} planet", parts)


_FUN_EYES = {
    "glasses": "wearing glasses",
    "shades": "wearing sunglasses",
    "love": "with heart eyes",
    "stars": "with star eyes",
    "crying": "crying",
    "tear drop": "with a tear",
    "wink": "winking",
    "sad": "with sad eyes",
    "closed": "with closed eyes",
    "sleep close": "sleeping",
}
_FUN_MOUTHS = {
    "face mask": "with a face mask",
    "kiss heart": "blowing a kiss",
    "sad": "frowning",
    "tongue out": "with tongue out",
    "wide smile": "smiling widely",
    "lil smile": "smiling",
    "smile teeth": "showing teeth",
    "smile lol": "laughing",
    "shout": "shouting",
    "sick": "sick",
    "drip": "drooling",
}


def _fun_emoji(options: Options) -> Description:
    color = options.color("background") or "yellow"
    parts = said(_FUN_EYES.get(options.variant("eyes"), ""), _FUN_MOUTHS.get(options.variant("mouth"), ""))
    return Description(f"a square {color} emoji face", parts)


_CUTOUT_MOODS = {"smile": "smiling", "torn smile": "smiling", "grin": "grinning", "gasp": "gasping"}


def _cutouts(options: Options) -> Description:
    hair = options.variant("hair").replace("tufts", "tufted").replace("curls", "curly")
    color = options.color("paperHair")
    parts = said(color and f"with {color} {hair} hair")
    return Description(
        f"a {options.color('paperFace')} face", parts, said(_CUTOUT_MOODS.get(options.variant("mouth"), ""))
    )


CREATURES: Mapping[str, Describer] = {
    "critters": _critters,
    "sprouts": _sprouts,
    "voxel-bot": _voxel_bot,
    "landscape": _landscape,
    "planets": _planets,
    "fun-emoji": _fun_emoji,
    "cutouts": _cutouts,
}
