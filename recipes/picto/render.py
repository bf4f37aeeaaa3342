"""Drawings as pictures: SVG by resvg, an object centred in a square, each rendered once.

Shapes: H W picture, S side of the square an object is centred in.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dalle3.errors import DataError
from dalle3.files import whole_file

if TYPE_CHECKING:
    from recipes.picto.assets import Asset

SIDE = 256  # every scene is composed at this size, in pixels
FILL = 0.88  # of the square is the longest side of an object
INK = "#1e1e20"  # what monochrome drawings are drawn in
_PROBE = 96  # width in pixels at which a drawing's bounds are looked for
_DOCUMENT = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{width}" '
    'height="{height}" viewBox="{x} {y} {width} {height}" color="{ink}">{body}</svg>'
)


class RenderError(DataError):
    """A drawing resvg cannot draw."""


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """The inside of an SVG document, and its view box (left, top, width, height)."""

    body: str
    box: tuple[float, float, float, float]

    def document(self, box: tuple[float, float, float, float], *, ink: str) -> str:
        """The whole SVG document that shows `box`; `ink` is the current colour."""
        x, y, width, height = box
        return _DOCUMENT.format(x=x, y=y, width=width, height=height, ink=ink, body=self.body)


def render_svg(svg: str, width: int, height: int | None = None) -> Image.Image:
    """The document as an RGBA picture of the width and height; without a height, as high as it comes.

    Raises:
        RenderError: resvg fails, even for a slightly larger picture.
    """
    for larger in (0, 1, 2, 5):  # a few blurs make resvg panic at one size and not at the next
        data = _resvg(svg, width + larger, height and height + larger)
        if data is not None:
            image = Image.open(io.BytesIO(data)).convert("RGBA")
            return _resized(image, width, height) if larger else image
    raise RenderError("resvg could not draw the document")


def render_object(drawing: Path | Fragment, *, side: int = SIDE, ink: str = INK) -> Image.Image | None:
    """The object cut out, centred in an RGBA square (S, S); None where the drawing is empty.

    Raises:
        RenderError: resvg fails.
    """
    image = _cut_file(drawing, side) if isinstance(drawing, Path) else _cut_fragment(drawing, side, ink)
    if image is None:
        return None
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    canvas.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


class Drawings:
    """Objects rendered at `SIDE` in their own colours, kept in a folder once made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def object(self, asset: Asset) -> Image.Image | None:
        """The asset's object, RGBA (SIDE, SIDE); None where the drawing is empty."""
        path = self.folder / (re.sub(r"[^\w.-]+", "_", asset.name) + ".png")
        if path.exists():
            return Image.open(path).convert("RGBA")
        image = render_object(asset.drawing)
        if image is not None:
            with whole_file(path) as partial:
                image.save(partial, "PNG", compress_level=1)
        return image


def _resvg(svg: str, width: int, height: int | None) -> bytes | None:
    """PNG data, or None where resvg fails."""
    import resvg_py  # type: ignore[import-not-found]  # only in the build's environment

    try:  # sizes in pt need a dpi; system fonts would make the picture depend on the machine
        return resvg_py.svg_to_bytes(svg_string=svg, width=width, height=height, dpi=96, skip_system_fonts=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a panic in Rust reaches Python as an exception that is no Exception
        return None


def _resized(image: Image.Image, width: int, height: int | None) -> Image.Image:
    if height is None:
        height = max(1, round(image.height * width / image.width))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _cut_file(path: Path, side: int) -> Image.Image | None:
    image = Image.open(path).convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()  # type: ignore[operator]
    if box is None:
        return None
    image = image.crop(box)
    scale = FILL * side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _cut_fragment(drawing: Fragment, side: int, ink: str) -> Image.Image | None:
    """The drawing rendered anew within its bounds, so that it is sharp at any size."""
    box = _bounds(drawing, ink)
    if box is None:
        return None
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    longest = max(width, height, 1e-3)
    view = left, top, max(width, 1e-3), max(height, 1e-3)
    pixels = max(1, round(FILL * side * width / longest)), max(1, round(FILL * side * height / longest))
    return render_svg(drawing.document(view, ink=ink), *pixels)


def _bounds(drawing: Fragment, ink: str) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of what is drawn, in the drawing's units; None where nothing is."""
    x, y, width, height = drawing.box
    probe = render_svg(drawing.document(drawing.box, ink=ink), _PROBE, round(_PROBE * height / width))
    drawn = np.asarray(probe)[..., 3] > 12  # (H, W)
    if not drawn.any():
        return None
    rows, columns = np.where(drawn.any(1))[0], np.where(drawn.any(0))[0]
    unit = width / _PROBE
    left, right = x + (columns[0] - 0.7) * unit, x + (columns[-1] + 1.7) * unit
    top, bottom = y + (rows[0] - 0.7) * unit, y + (rows[-1] + 1.7) * unit
    return max(left, x), max(top, y), min(right, x + width), min(bottom, y + height)
