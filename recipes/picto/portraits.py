"""The options that drew a DiceBear character, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from recipes.picto.colors import name_rgb, parse_hex


class Options:
    """The options DiceBear chose for a character."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw

    def variant(self, part: str) -> str:
        """Which of its forms a part has, in lower-case words; "" where the part is absent."""
        name = self.raw.get(f"{part}Variant") or ""
        name = re.sub(r"\d+$", "", re.sub(r"([a-z])([A-Z])", r"\1 \2", name))
        return name.lower().strip()

    def rgb(self, part: str) -> tuple[int, int, int] | None:
        """The first colour of a part; None where it has none."""
        colors = self.raw.get(f"{part}Color")
        return parse_hex(colors[0]) if colors else None

    def color(self, part: str) -> str:
        """The name of a part's colour; "" where it has none."""
        rgb = self.rgb(part)
        return name_rgb(*rgb) if rgb else ""

    def hair(self) -> str:
        """The name of the hair's colour as one says it of hair; "" where there is none."""
        rgb = self.rgb("hair")
        if rgb is None:
            return ""
        name, light = name_rgb(*rgb), _lightness(rgb)
        if name == "yellow" or (name in ("orange", "brown") and light > 170):
            return "blond"
        if name == "red" and light < 70:
            return "brown"
        return "ginger" if name == "orange" else name

    def skin(self) -> str:
        """The character's skin: "light", "medium" or "dark"."""
        rgb = self.rgb("skin")
        assert rgb is not None, "every style with a skin gives it a colour"
        light = _lightness(rgb)
        return "light" if light > 185 else "medium" if light > 120 else "dark"


@dataclass(frozen=True)
class Description:
    """Who is shown, the parts in the order they are said, and the mood."""

    who: str
    parts: list[str]
    mood: list[str] = field(default_factory=list)


Describer = Callable[[Options], Description]


def said(*phrases: str) -> list[str]:
    """The phrases that say something."""
    return [phrase for phrase in phrases if phrase]


def having(thing: str) -> str:
    """The thing as something a character has, or "" for none."""
    return f"with {thing}" if thing else ""


def _lightness(rgb: tuple[int, int, int]) -> float:
    red, green, blue = rgb
    return 0.3 * red + 0.59 * green + 0.11 * blue
