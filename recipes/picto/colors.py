"""Names of colours as people use them, counted in pixels; and objects in another colour.

Shapes: H W picture, P opaque pixels, 12 colours of `vocabulary.COLORS`.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipes.picto.vocabulary import COLORS

OPAQUE = 160  # alpha above which a pixel counts
NAMES = tuple(COLORS)


def name_rgb(red: float, green: float, blue: float) -> str:
    """The colour's name, one of `COLORS`; the channels are in [0, 255]."""
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    return _name_gray(saturation, value) or _name_hue(hue * 360, saturation, value)


def parse_hex(text: str) -> tuple[int, int, int]:
    """The channels of "#rrggbb"; what follows is ignored."""
    red, green, blue = (int(text[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue


def to_hex(rgb: tuple[int, int, int]) -> str:
    """The colour as "#rrggbb"."""
    red, green, blue = rgb
    return f"#{red:02x}{green:02x}{blue:02x}"


def color_shares(rgba: NDArray[np.uint8]) -> dict[str, float]:
    """The share of each colour among the opaque pixels of a picture (H, W, 4), largest first, those above 2 %."""
    pixels = rgba[rgba[..., 3] > OPAQUE][:, :3] >> 3  # (P, 3)
    if len(pixels) == 0:
        return {}
    counts = np.bincount(_table()[pixels[:, 0], pixels[:, 1], pixels[:, 2]], minlength=len(NAMES)) / len(pixels)
    return {NAMES[i]: float(counts[i]) for i in np.argsort(-counts) if counts[i] > 0.02}


def shares_of(image: Image.Image) -> dict[str, float]:
    """The share of each colour among the opaque pixels of an RGBA picture, largest first."""
    return color_shares(np.asarray(image))


def main_color(shares: Mapping[str, float]) -> str:
    """The colour most pixels have, or "" where none are opaque."""
    return next(iter(shares), "")


def recolored(image: Image.Image, target: str) -> Image.Image | None:
    """The RGBA object with its main hue turned to `target`; None unless half of it then really is that colour."""
    rgba = np.asarray(image)
    shares = color_shares(rgba)
    main = main_color(shares)
    if shares.get(main, 0) < 0.5 or main in ("black", "white", "gray", target):
        return None
    result = np.dstack([_turned(rgba, main, target), rgba[..., 3]])
    shares = color_shares(result)
    return Image.fromarray(result, "RGBA") if main_color(shares) == target and shares[target] >= 0.5 else None


def _turned(rgba: NDArray[np.uint8], main: str, target: str) -> NDArray[np.uint8]:
    """The picture (H, W, 3) with the pixels near the median hue of colour `main` turned to that of `target`.

    Saturation and value follow only within bounds, so that shading stays.
    """
    hsv = np.asarray(Image.fromarray(rgba[..., :3]).convert("HSV")).astype(int)
    named = _table()[rgba[..., 0] >> 3, rgba[..., 1] >> 3, rgba[..., 2] >> 3]
    chosen = (rgba[..., 3] > OPAQUE) & (named == NAMES.index(main))
    hue, saturation, value = (np.median(hsv[..., channel][chosen]) for channel in range(3))
    red, green, blue = (channel / 255 for channel in COLORS[target])
    goal_hue, goal_saturation, goal_value = colorsys.rgb_to_hsv(red, green, blue)
    near = (np.abs((hsv[..., 0] - hue + 128) % 256 - 128) < 26) & (hsv[..., 1] > 40)
    saturated = min(max(goal_saturation * 255 / max(saturation, 1), 0.6), 1.6)
    lit = min(max(goal_value * 255 / max(value, 1), 0.75), 1.35)
    out = hsv.copy()
    out[..., 0][near] = ((hsv[..., 0] - hue + goal_hue * 255) % 256)[near]
    out[..., 1][near] = np.clip(hsv[..., 1] * saturated, 0, 255)[near]
    out[..., 2][near] = np.clip(hsv[..., 2] * lit, 0, 255)[near]
    return np.asarray(Image.fromarray(out.astype(np.uint8), "HSV").convert("RGB"))


@lru_cache(maxsize=1)
def _table() -> NDArray[np.uint8]:
    """The index of the colour of every cell of a (32, 32, 32) grid over RGB, named at its centre."""
    levels = [8 * step + 4 for step in range(32)]
    named = [NAMES.index(name_rgb(r, g, b)) for r in levels for g in levels for b in levels]
    return np.array(named, np.uint8).reshape(32, 32, 32)


def _name_gray(saturation: float, value: float) -> str:
    if value < 0.22:
        return "black"
    if saturation < 0.13:
        return "white" if value > 0.86 else "gray" if value > 0.28 else "black"
    if saturation < 0.25 and value < 0.75:
        return "gray"
    return "white" if saturation < 0.20 and value >= 0.9 else ""


def _name_hue(hue: float, saturation: float, value: float) -> str:
    if hue < 14 or hue >= 345:
        return _name_reddish(saturation, value)
    if hue < 42:
        return "brown" if value < 0.68 or (saturation < 0.55 and value < 0.82) else "orange"
    if hue < 68:
        return "yellow" if value > 0.62 else "brown" if hue < 52 else "green"
    for end, name in ((160, "green"), (190, "teal"), (255, "blue"), (295, "purple")):
        if hue < end:
            return name
    return "pink" if value > 0.55 else "purple"


def _name_reddish(saturation: float, value: float) -> str:
    if value > 0.75 and saturation < 0.55:
        return "pink"
    return "red" if value > 0.42 else "brown"
