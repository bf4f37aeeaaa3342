"""What DiceBear's people look like, in words; variants unnamed here are left unsaid."""

from __future__ import annotations

from collections.abc import Mapping

from recipes.picto.portraits import Describer, Description, Options, said

_PEEPS_HEADS = {
    "hijab": "wearing a hijab",
    "turban": "wearing a turban",
    "hat beanie": "wearing a beanie",
    "hat hip": "wearing a hat",
    "no hair": "with a bald head",
    "bear": "wearing a bear hood",
    "afro": "with an afro",
    "mohawk": "with a mohawk",
    "pomp": "with a pompadour",
    "dreads": "with dreadlocks",
    "twists": "with twisted hair",
    "cornrows": "with cornrows",
    "bun": "with a hair bun",
    "buns": "with two hair buns",
    "bantu knots": "with bantu knots",
    "flat top": "with a flat top haircut",
    "flat top long": "with a tall flat top haircut",
    "shaved": "with a shaved head",
}
_PEEPS_MOODS = {
    "smile": "smiling",
    "smile big": "smiling",
    "smile lol": "laughing",
    "rage": "very angry",
    "very angry": "very angry",
    "angry with fang": "angry",
    "calm": "calm",
    "serious": "serious",
    "tired": "tired",
    "fear": "scared",
    "concerned": "worried",
    "suspicious": "suspicious",
    "eyes closed": "with closed eyes",
    "awe": "amazed",
}


def _open_peeps(options: Options) -> Description:
    head, accessory = options.variant("head"), options.variant("accessories")
    beard, mask = options.variant("facialHair"), options.variant("mask")
    worn = {"": "", "eyepatch": "with an eyepatch"}.get(accessory, f"wearing {accessory}")
    bearded = {"": "", "full": "with a full beard", "chin": "with a chin beard"}.get(beard, f"with a {beard}")
    parts = said(
        _PEEPS_HEADS.get(head) or f"with {head.replace('bangs', 'banged')} hair",
        f"with {options.skin()} skin",
        worn,
        bearded,
        mask and f"wearing a {mask}",
        f"in a {options.color('clothing')} shirt",
    )
    return Description("a person", parts, said(_PEEPS_MOODS.get(options.variant("expression"), "")))


_PERSONAS_HAIR = {
    "bald": "with a bald head",
    "balding": "with balding {} hair",
    "beanie": "wearing a beanie",
    "cap": "wearing a cap",
    "mohawk": "with a {} mohawk",
    "pigtails": "with {} pigtails",
    "straight bun": "with a {} hair bun",
    "curly bun": "with a curly {} bun",
    "buzzcut": "with a {} buzzcut",
    "fade": "with a {} fade haircut",
    "extra long": "with very long {} hair",
    "long": "with long {} hair",
    "curly": "with curly {} hair",
    "bob cut": "with {} bob cut hair",
    "bob bangs": "with {} bob cut hair",
    "side shave": "with {} side shaved hair",
    "short combover": "with {} short hair",
    "short combover chops": "with {} short hair",
    "bun undercut": "with {} undercut hair",
}
_PERSONAS_BEARDS = {
    "beard mustache": "with a beard",
    "goatee": "with a goatee",
    "walrus": "with a walrus mustache",
    "soul patch": "with a soul patch",
    "shadow": "with stubble",
    "pyramid": "with a mustache",
}
_PERSONAS_MOODS = {
    "big smile": "smiling widely",
    "smile": "smiling",
    "frown": "frowning",
    "surprise": "surprised",
    "pacifier": "with a pacifier",
    "smirk": "smirking",
}


def _personas(options: Options) -> Description:
    hair, eyes, beard = options.variant("hair"), options.variant("eyes"), options.variant("facialHair")
    shirt = "checkered shirt" if options.variant("clothes") == "checkered" else "shirt"
    parts = said(
        _PERSONAS_HAIR.get(hair, f"with {{}} {hair} hair").format(options.hair()),
        f"with {options.skin()} skin",
        f"wearing {eyes}" if eyes in ("glasses", "sunglasses") else "",
        _PERSONAS_BEARDS[beard] if beard else "",
        f"in a {options.color('clothing')} {shirt}",
    )
    mood = _PERSONAS_MOODS.get(options.variant("mouth"), "")
    return Description("a person", parts, said(mood, "winking" if eyes == "wink" else ""))


_TOON_LENGTHS = {
    "long straight": "long straight",
    "long wavy": "long wavy",
    "neck high": "neck length",
    "shoulder high": "shoulder length",
}
_TOON_BEARDS = {
    "chin": "with a chin beard",
    "chin moustache": "with a beard and moustache",
    "full beard": "with a full beard",
    "long beard": "with a long beard",
    "moustache twirl": "with a twirled moustache",
}
_TOON_CLOTHES = {"t shirt": "t-shirt", "turtle neck": "turtleneck"}
_TOON_MOODS = {"laugh": "laughing", "angry": "angry", "sad": "sad", "smile": "smiling", "agape": "with mouth open"}


def _toon_head(options: Options) -> Description:
    beard, clothes = options.variant("beard"), options.variant("clothes")
    parts = said(
        f"with {_TOON_LENGTHS.get(options.variant('rearHair'), 'short')} {options.hair()} hair",
        f"with {options.skin()} skin",
        _TOON_BEARDS[beard] if beard else "",
        f"in a {options.color('clothes')} {_TOON_CLOTHES.get(clothes, clothes)}",
    )
    mood = _TOON_MOODS.get(options.variant("mouth"), "")
    return Description("a person", parts, said(mood, "winking" if options.variant("eyes") == "wink" else ""))


_SMILE_HAIR = {
    "bangs": "with {} hair and bangs",
    "bowl cut hair": "with a {} bowl cut",
    "braids": "with {} braids",
    "bun hair": "with a {} hair bun",
    "curly bob": "with a curly {} bob",
    "curly short hair": "with short curly {} hair",
    "fro bun": "with a {} afro bun",
    "half shaved head": "with a half shaved {} head",
    "mohawk": "with a {} mohawk",
    "shaved head": "with shaved {} hair",
    "short hair": "with short {} hair",
    "straight hair": "with straight {} hair",
    "wavy bob": "with a wavy {} bob",
}
_SMILE_ACCESSORIES = {
    "cat ears": "with cat ears",
    "clown nose": "with a clown nose",
    "face mask": "wearing a face mask",
    "glasses": "wearing glasses",
    "mustache": "with a mustache",
    "sailormoon crown": "wearing a crown",
    "sleep mask": "wearing a sleep mask",
    "sunglasses": "wearing sunglasses",
}
_SMILE_MOODS = {
    "angry": "angry",
    "sad": "sad",
    "sleepy": "sleepy",
    "winking": "winking",
    "starstruck": "starstruck",
    "confused": "confused",
    "cheery": "cheerful",
}


def _big_smile(options: Options) -> Description:
    accessory = options.variant("accessories")
    parts = said(
        _SMILE_HAIR[options.variant("hair")].format(options.hair()),
        f"with {options.skin()} skin",
        _SMILE_ACCESSORIES[accessory] if accessory else "",
    )
    return Description("a funny face", parts, said(_SMILE_MOODS.get(options.variant("eyes"), "")))


_VOXEL_TOPS = {
    "": "with no hair",
    "cap": "wearing a {hat} cap",
    "beanie": "wearing a {hat} beanie",
    "animal ears": "with animal ears",
    "bunny ears": "with bunny ears",
    "afro": "with a {hair} afro",
    "mohawk": "with a {hair} mohawk",
    "buns": "with {hair} hair buns",
    "ponytail": "with a {hair} ponytail",
    "bob": "with a {hair} bob",
    "braids": "with {hair} braids",
    "twin tails": "with {hair} twin tails",
    "bowl": "with a {hair} bowl cut",
}
_VOXEL_GLASSES = {
    "shades": "wearing sunglasses",
    "cat": "wearing cat eye glasses",
    "visor": "wearing a visor",
    "round": "wearing round glasses",
    "square": "wearing square glasses",
}
_VOXEL_BEARDS = {
    "full": "with a full beard",
    "mustache": "with a mustache",
    "goatee": "with a goatee",
    "stubble": "with stubble",
}
_VOXEL_OUTFITS = {
    "plain": "in a {shirt} shirt",
    "stripes": "in a striped shirt",
    "jacket": "in a {jacket} jacket",
    "checker": "in a checkered shirt",
    "overalls": "in overalls",
    "hoodie": "in a hoodie",
    "tie": "in a shirt and tie",
    "coat": "in a coat",
    "dress": "in a dress",
    "suit": "in a suit",
}
_VOXEL_MOODS = {
    "smile": "smiling",
    "big smile": "smiling",
    "frown": "frowning",
    "laugh": "laughing",
    "tongue": "with tongue out",
}


def _voxel_art(options: Options) -> Description:
    top, glasses, beard = options.variant("top"), options.variant("glasses"), options.variant("beard")
    outfit = _VOXEL_OUTFITS.get(options.variant("outfit"), "in a shirt")
    parts = said(
        _VOXEL_TOPS.get(top, f"with {top} {{hair}} hair").format(hair=options.hair(), hat=options.color("hat")),
        _VOXEL_GLASSES[glasses] if glasses else "",
        _VOXEL_BEARDS[beard] if beard else "",
        outfit.format(shirt=options.color("shirt"), jacket=options.color("jacket")),
    )
    return Description("a blocky person", parts, said(_VOXEL_MOODS.get(options.variant("mouth"), "")))


PEOPLE: Mapping[str, Describer] = {
    "open-peeps": _open_peeps,
    "personas": _personas,
    "toon-head": _toon_head,
    "big-smile": _big_smile,
    "voxel-art": _voxel_art,
}
