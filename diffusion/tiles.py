"""Pictures larger than memory allows: overlapping tiles whose predictions are blended at every step.

Because tiles agree on one x0 before the next step is taken, and draw from one noise, they cannot drift apart,
and no seam is left to hide. Shapes: B pictures, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.errors import ShapeError
from diffusion.process import Denoiser, Prediction, Process
from diffusion.unet import SuperResUNet, stretch


class Region(NamedTuple):
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pictures: Tensor) -> Tensor:
        """That part of pictures (B, C, H, W)."""
        return pictures[..., self.top : self.top + self.height, self.left : self.left + self.width]


def tile_regions(height: int, width: int, *, tile: int, overlap: int, align: int = 32) -> list[Region]:
    """Overlapping regions that cover height x width, row by row.

    Args:
        height: of the picture, a multiple of `align`.
        width: as well.
        tile: the longest side of a region, a multiple of `align`.
        overlap: pixels that neighbours share at least, below `tile`.
        align: what every side and corner is a multiple of: the network's stride.
    Raises:
        ShapeError: something is not such a multiple, or the overlap leaves no way forward.
    """
    for name, value in (("height", height), ("width", width), ("tile", tile)):
        if value < align or value % align:
            raise ShapeError(f"{name} {value} does not fit: it must be a multiple of {align}")
    step = (tile - overlap) // align * align
    if overlap < 0 or step < align:
        raise ShapeError(f"tiles of {tile} pixels cannot overlap by {overlap}; at most {tile - align} is possible")
    rows, columns = _starts(height, tile, step), _starts(width, tile, step)
    return [Region(top, left, min(tile, height), min(tile, width)) for top in rows for left in columns]


def tiled(
    denoise_at: Callable[[Region], Denoiser], *, height: int, width: int, tile: int, overlap: int, align: int = 32
) -> Denoiser:
    """The denoiser of whole pictures that blends the x0 and the variance of denoisers of their regions.

    Guidance goes around it, not inside: a gradient of a region is not blended.

    Args:
        denoise_at: the denoiser of a region, with the conditions of that region.
        height: of the pictures.
        width: of the pictures.
        tile: see `tile_regions`.
        overlap: see `tile_regions`.
        align: see `tile_regions`.
    Raises:
        ShapeError: as `tile_regions`.
    """
    regions = tile_regions(height, width, tile=tile, overlap=overlap, align=align)

    def wrapped(x: Tensor, t: int) -> Prediction:
        total, x0, variance = (torch.zeros_like(x[:1, :1]), torch.zeros_like(x), torch.zeros_like(x))
        for region in regions:
            prediction = denoise_at(region)(region.of(x), t)
            weight = _weight(region, overlap).to(x)
            region.of(total).add_(weight)
            region.of(x0).add_(weight * prediction.x0)
            region.of(variance).add_(weight * prediction.variance)
        return Prediction(x0 / total, variance / total)

    return wrapped


def upsampler(
    network: SuperResUNet,
    low_res: Tensor,
    *,
    process: Process,
    height: int,
    width: int,
    tile: int = 256,
    overlap: int = 64,
    labels: Tensor | None = None,
) -> Denoiser:
    """The denoiser that enlarges pictures to height x width, tile by tile where they are larger than a tile.

    Args:
        network: an upsampler.
        low_res: (B, C, h, w), the pictures, in -1..1.
        process: the chain it is sampled with.
        height: a multiple of the network's stride.
        width: as well.
        tile: pixels a side the network sees at once; that it was trained at, or as many as memory takes.
        overlap: pixels that tiles share.
        labels: (B,), for a class-conditional network.
    Raises:
        ShapeError: as `tile_regions`.
    """
    # Stretched once and then cut, so that the edges of tiles see their true neighbours.
    stretched = stretch(low_res, height, width)

    def denoise_at(region: Region) -> Denoiser:
        part = region.of(stretched)
        return process.denoiser(lambda x, timesteps: network(x, timesteps, low_res=part, labels=labels))

    return tiled(denoise_at, height=height, width=width, tile=tile, overlap=overlap, align=network.stride)


def _starts(length: int, tile: int, step: int) -> list[int]:
    last = max(length - tile, 0)
    return [*range(0, last, step), last]


def _weight(region: Region, overlap: int) -> Tensor:
    return _ramp(region.height, overlap)[:, None] * _ramp(region.width, overlap)[None, :]


def _ramp(length: int, overlap: int) -> Tensor:
    rise = (torch.arange(length) + 0.5) / max(overlap, 1)
    return torch.minimum(rise, rise.flip(0)).clamp(max=1.0)
