"""Reads coloured shapes out of a picture and scores a picture against the scene it should show.

It needs no network: the background is what lies at the border, an object is a connected region of another colour,
its colour is the nearest of the palette and its shape the template that overlaps best. Pictures should be 128 pixels
or larger; on clean ones it is right in every scene tried (`python -m recipes.shapes selftest`).

Shapes: H W picture, h w box of one object, K number of shapes known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from recipes.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, SIZES, Object, Scene, mask

Array = NDArray[np.floating]

BORDER = 3  # pixels of the frame the background is read from
CONTRAST = 18  # Lab distance from the background at which an object begins
SMALLEST = 0.004  # part of the picture's area below which a region is a speck
OVERLAP = 0.72  # of outline and template, below which a shape is unknown
MARGIN = 0.1  # part of the side by which "left of" must be left

_TO_XYZ = np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]], np.float32)
_WHITE = np.array([0.9505, 1, 1.089])


@dataclass(frozen=True, kw_only=True)
class Found(Object):
    """An object seen in a picture; its shape may be "unknown", `score` is the overlap with its template in [0, 1]."""

    score: float


def check(picture: Image.Image, what: Scene) -> dict[str, float]:
    """How far a picture shows a scene, each entry in [0, 1].

    `count` number of objects right; `binding` part of the objects found with shape and colour together; `shape`,
    `color` the same apart; `size` part found in its size; `background`; `relation` (two objects only); `all` of it.
    """
    background, seen = detect(picture)
    matches = match(what.objects, seen)
    number = len(what.objects)
    hits = [(thing, hit) for thing, hit in zip(what.objects, matches, strict=True) if hit is not None]
    scores = {
        "count": float(len(seen) == number),
        "binding": len(hits) / number,
        "shape": sum(any(one.shape == thing.shape for one in seen) for thing in what.objects) / number,
        "color": sum(any(one.color == thing.color for one in seen) for thing in what.objects) / number,
        "size": sum(hit.size == thing.size for thing, hit in hits) / number,
        "background": float(background == what.background),
    }
    if what.relation is not None:
        scores["relation"] = float(_holds(what.relation, *matches))
    needed = ["count", "binding", "background", "relation", *([] if what.kind == "count" else ["size"])]
    return {**scores, "all": float(all(scores.get(name, 1) == 1 for name in needed))}


def match(wanted: tuple[Object, ...], seen: list[Found]) -> list[Found | None]:
    """For each wanted object the first one seen with its shape and colour, each used once."""
    free, matches = list(seen), []
    for thing in wanted:
        hit = next((one for one in free if (one.shape, one.color) == (thing.shape, thing.color)), None)
        matches.append(hit)
        if hit is not None:
            free.remove(hit)
    return matches


def detect(picture: Image.Image, *, size: int = 128) -> tuple[str, list[Found]]:
    """The background's name and the objects of a picture, which is first resized to `size` pixels square."""
    resample = Image.Resampling.BOX if picture.width > size else Image.Resampling.BICUBIC
    pixels = lab(np.asarray(picture.convert("RGB").resize((size, size), resample), np.float32))
    ground = np.median(_border(pixels), 0)
    distance = np.sqrt(((pixels - ground) ** 2).sum(-1))
    labels, number = components(_despeckled(distance) > CONTRAST)
    seen = [_read(pixels, labels, label, ground, distance) for label in range(1, number + 1)]
    return _nearest(ground, BACKGROUNDS), [found for found in seen if found is not None]


def lab(pixels: Array) -> Array:
    """CIE L*a*b* (..., 3) of sRGB (..., 3) in [0, 255], white point D65."""
    c = pixels / 255
    linear = np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
    xyz = linear @ _TO_XYZ / _WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def components(inside: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """The 4-connected regions of a map (H, W) as labels 1, 2, ... (0 is outside), and their number."""
    labels, parents = np.zeros(inside.shape, np.int32), [0]
    for y, row in enumerate(inside):
        for start, end in _runs(row):
            above = set(labels[y - 1, start:end][inside[y - 1, start:end]].tolist()) if y else set()
            labels[y, start:end] = _join(parents, above)
    roots = np.array([_root(parents, label) for label in range(len(parents))])
    names, dense = np.unique(roots[labels], return_inverse=True)
    return dense.reshape(inside.shape), len(names) - 1


@lru_cache(maxsize=4096)
def templates(width: int, height: int, blur: float) -> Array:
    """(K, height + 6, width + 6), every shape stretched into the box and blurred, within a margin of 3 pixels."""
    filled = []
    for shape in SHAPES:
        canvas = Image.new("L", (width + 6, height + 6))
        resample = Image.Resampling.BOX if width < 96 else Image.Resampling.BILINEAR
        canvas.paste(mask(shape, 96).resize((width, height), resample), (3, 3))
        blurred = canvas.filter(ImageFilter.GaussianBlur(blur)) if blur else canvas
        filled.append(np.asarray(blurred, np.float32) / 255)
    return np.stack(filled)


def _runs(row: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(row, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _join(parents: list[int], above: set[int]) -> int:
    if not above:
        parents.append(len(parents))
        return len(parents) - 1
    first = min(_root(parents, label) for label in above)
    for label in above:
        parents[_root(parents, label)] = first
    return first


def _root(parents: list[int], label: int) -> int:
    while parents[label] != label:
        parents[label] = parents[parents[label]]
        label = parents[label]
    return label


def _border(pixels: Array) -> Array:
    bands = (pixels[:BORDER], pixels[-BORDER:], pixels[:, :BORDER], pixels[:, -BORDER:])
    return np.concatenate([band.reshape(-1, 3) for band in bands])


def _despeckled(distance: Array) -> Array:
    halves = Image.fromarray(np.clip(distance * 2, 0, 255).astype(np.uint8))
    return np.asarray(halves.filter(ImageFilter.MedianFilter(3)), np.float32) / 2


def _nearest(color: Array, palette: dict[str, tuple[int, int, int]]) -> str:
    entries = lab(np.array([list(palette.values())], np.float32))[0]
    return list(palette)[int(((entries - color) ** 2).sum(1).argmin())]


def _read(pixels: Array, labels: NDArray[np.int64], label: int, ground: Array, distance: Array) -> Found | None:
    inside = labels == label
    side = len(labels)
    if inside.sum() < side * side * SMALLEST:
        return None
    depth = distance[inside]
    core = np.median(pixels[inside][depth >= np.quantile(depth, 0.55)], 0)
    (top, left), outline = _outline(pixels, labels, label, core - ground, ground)
    rows, columns = np.where((outline > 0.5).any(1))[0], np.where((outline > 0.5).any(0))[0]
    if len(rows) < 4 or len(columns) < 4:
        return None
    height, width = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
    score, shape = _best_template(outline, (int(rows[0]), int(columns[0])), (height, width))
    known = score > OVERLAP and max(height, width) < 1.35 * min(height, width) + 2
    return Found(
        shape=shape if known else "unknown",
        color=_nearest(core, COLORS),
        size=min(SIZES, key=lambda name: abs(math.log(max(width, height) / side / SIZES[name]))),
        x=float((left + (columns[0] + columns[-1]) / 2) / side),
        y=float((top + (rows[0] + rows[-1]) / 2) / side),
        score=round(score, 2),
    )


def _outline(
    pixels: Array, labels: NDArray[np.int64], label: int, step: Array, ground: Array
) -> tuple[tuple[int, int], Array]:
    """The box's corner, and how much of each of its pixels is the object: a blurred edge is half background."""
    side, (ys, xs) = len(labels), np.where(labels == label)
    box = np.s_[max(ys.min() - 4, 0) : min(ys.max() + 5, side), max(xs.min() - 4, 0) : min(xs.max() + 5, side)]
    alpha = np.clip((pixels[box] - ground) @ step / (step @ step), 0, 1)
    alpha[(labels[box] > 0) & (labels[box] != label)] = 0
    return (int(box[0].start), int(box[1].start)), alpha


def _best_template(outline: Array, corner: tuple[int, int], size: tuple[int, int]) -> tuple[float, str]:
    padded = np.zeros((outline.shape[0] + 12, outline.shape[1] + 12), np.float32)
    padded[6:-6, 6:-6] = outline
    best = (-1.0, "unknown")
    for grow in (0, 1, 2):  # a blurred outline loses its corners, so larger boxes are tried too
        top, left = (start + 3 - grow // 2 for start in corner)
        height, width = (length + grow for length in size)
        for blur in (0, 0.8, 1.5):
            known = templates(width, height, blur)
            for up, back in ((0, 0), (0, 1), (1, 0), (1, 1)) if grow == 1 else ((0, 0),):
                y, x = top - up, left - back
                best = max(best, _overlap(padded[y : y + height + 6, x : x + width + 6], known), key=lambda b: b[0])
    return best


def _overlap(window: Array, known: Array) -> tuple[float, str]:
    if window.shape != known.shape[1:]:
        return -1.0, "unknown"
    scores = np.minimum(window, known).sum((1, 2)) / np.maximum(window, known).sum((1, 2))
    return float(scores.max()), SHAPES[int(scores.argmax())]


def _holds(relation: str, first: Found | None, second: Found | None) -> bool:
    if first is None or second is None:
        return False
    return {
        "left": first.x < second.x - MARGIN,
        "right": first.x > second.x + MARGIN,
        "above": first.y < second.y - MARGIN,
        "below": first.y > second.y + MARGIN,
    }[relation]
