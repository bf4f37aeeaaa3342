"""The things emoji stand for, with their names in English, from emojibase."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.picto.vocabulary import FLAGS, OBJECTS, SKIN_TONES

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A thing with a name; of icons that are no emoji, only the name is known."""

    hexcode: str  # code points, such as "1f43a"; "" for an icon
    base: str  # what its variants (skin tones, genders) have in common; splits are made by it
    label: str
    tone: str = ""  # of the skin, one of TONES; "" where none is said
    group: int = OBJECTS  # index into GROUPS
    subgroup: str = ""
    tags: tuple[str, ...] = ()
    emoji: str = ""


def icon_concept(style: str, name: str) -> Concept:
    """The concept of an icon known by its file name alone, such as "crystal-shrine"."""
    return Concept(hexcode="", base=f"{style}:{name}", label=re.sub(r"-\d+$", "", name).replace("-", " "))


def load_concepts(folder: Path) -> dict[str, Concept]:
    """The concepts of emojibase's English data in `folder`, by hexcode; flags and skin tones alone are left out."""
    messages = json.loads((folder / "messages.json").read_text(encoding="utf-8"))
    subgroups = {entry["order"]: entry["message"] for entry in messages["subgroups"]}
    concepts: dict[str, Concept] = {}
    for entry in json.loads((folder / "data.json").read_text(encoding="utf-8")):
        if entry.get("group") not in (None, SKIN_TONES, FLAGS):
            for variant in [entry, *entry.get("skins", [])]:
                concept = _concept(entry, variant, subgroup=subgroups.get(entry["subgroup"], ""))
                if concept:
                    concepts[concept.hexcode] = concept
    return concepts


def plain_hexcode(code: str) -> str:
    """Code points in lower case without the variation selector that asks for a picture."""
    return code.lower().replace("-fe0f", "")


def slug(name: str) -> str:
    """A name as icon sets write it: "Woman’s hat" is "womans-hat"."""  # noqa: RUF002
    name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    name = name.lower().replace("'", "").replace("&", "and")
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def unicode_slug(concept: Concept) -> str:
    """Unicode's own name of a concept of one character, letters and digits only; "" where there is none."""
    character = concept.emoji.replace("\ufe0f", "")
    name = unicodedata.name(character, "") if len(character) == 1 else ""
    return re.sub("[^a-z0-9]", "", name.lower())


def full_label(concept: Concept) -> str:
    """The concept's label with its skin tone, as CLDR writes it."""
    return f"{concept.label}: {concept.tone} skin tone" if concept.tone else concept.label


def _concept(entry: dict[str, Any], variant: dict[str, Any], *, subgroup: str) -> Concept | None:
    named = _label_and_tone(variant["label"])
    if named is None:
        return None
    return Concept(
        hexcode=plain_hexcode(variant["hexcode"]),
        base=plain_hexcode(entry["hexcode"]),
        label=named[0],
        tone=named[1],
        group=entry["group"],
        subgroup=subgroup,
        tags=tuple(entry.get("tags", [])),
        emoji=variant["emoji"],
    )


def _label_and_tone(label: str) -> tuple[str, str] | None:
    """A label without its skin tone, and the tone; None where two people have two tones."""
    match = re.match(r"^(.*?): (.*skin tone.*)$", label)
    if not match:
        return label, ""
    details = [part.strip() for part in match.group(2).split(",")]
    tones = [part for part in details if "skin tone" in part]
    others = [part for part in details if "skin tone" not in part]
    if len(tones) > 1:
        return None
    name = match.group(1) + (": " + ", ".join(others) if others else "")
    return name, tones[0].replace(" skin tone", "")
