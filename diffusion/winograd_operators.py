"""Winograd's convolution with PyTorch's operators: one batched matrix product, and small ones around it.

Shapes: B pictures, C input and O output channels, H W pixels, n = m + 2 pixels a side of an input tile.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# What one strip of tiles may take, so that it stays in the cache between the transforms: 256 channels at 256 pixels
# took half the time with 2 MB that they took with 8 MB, in bfloat16 on two cores.
STRIP_BYTES = 2 << 20


class Transforms(NamedTuple):
    """Of tiles flattened to columns: input (n^2, n^2), kernel (n^2, 9), output (m^2, n^2)."""

    inputs: Tensor
    kernel: Tensor
    outputs: Tensor


def convolve(x: Tensor, weight: Tensor, bias: Tensor, *, size: int) -> Tensor:
    """As `winograd.convolve`."""
    (batch, _, height, width), out_channels = x.shape, len(weight)
    transforms = _transforms(size, x.dtype)
    flat = weight.permute(2, 3, 1, 0).reshape(9, -1).float()
    kernel = (transforms.kernel @ flat).to(x.dtype).unflatten(1, (-1, out_channels))  # (n^2, C, O)
    out = x.new_empty(batch, height, width, out_channels)
    widest = max(weight.shape[:2])
    rows = max(1, STRIP_BYTES // ((size + 2) ** 2 * (width // size) * widest * x.element_size())) * size
    for picture, result in zip(x.permute(0, 2, 3, 1), out, strict=True):
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            # Each strip gets its own border: a whole picture with one would leave the cache.
            inner, border = picture[max(top - 1, 0) : bottom + 1], (1, 1, int(top == 0), int(bottom == height))
            _strip(F.pad(inner, (0, 0, *border)), kernel, transforms, result[top:bottom])
    return out.add_(bias).permute(0, 3, 1, 2)


def _strip(strip: Tensor, kernel: Tensor, transforms: Transforms, out: Tensor) -> None:
    """Convolves a strip (h + 2, W + 2, C) into `out` (h, W, O)."""
    (height, width, out_channels), channels = out.shape, strip.shape[2]
    side = int(len(transforms.inputs) ** 0.5)
    size = side - 2
    down, across = height // size, width // size
    row, column, channel = strip.stride()
    tiles = strip.as_strided(
        (side, side, down, across, channels), (row, column, size * row, size * column, channel), strip.storage_offset()
    )
    spread = (transforms.inputs @ tiles.reshape(side * side, -1)).view(side * side, down * across, channels)
    products = torch.bmm(spread, kernel).view(side * side, -1)
    gathered = (transforms.outputs @ products).view(size, size, down, across, out_channels)
    out.view(down, size, across, size, out_channels).copy_(gathered.permute(2, 0, 3, 1, 4))


@cache
def _transforms(size: int, dtype: torch.dtype) -> Transforms:
    inputs, kernel, outputs = (torch.tensor(rows, dtype=torch.float64) for rows in _MATRICES[size])
    return Transforms(
        torch.kron(inputs, inputs).to(dtype), torch.kron(kernel, kernel).float(), torch.kron(outputs, outputs).to(dtype)
    )


def _matrices(a: float, b: float) -> tuple[list[list[float]], ...]:
    """Input, kernel and output transform of m = 4, with the polynomials taken at 0, a, -a, b, -b and infinity."""
    over_a, over_b = 2 * a**2 * (a**2 - b**2), 2 * b**2 * (b**2 - a**2)
    inputs = [
        [a**2 * b**2, 0, -(a**2) - b**2, 0, 1, 0],
        [0, -a * b**2, -(b**2), a, 1, 0],
        [0, a * b**2, -(b**2), -a, 1, 0],
        [0, -b * a**2, -(a**2), b, 1, 0],
        [0, b * a**2, -(a**2), -b, 1, 0],
        [0, a**2 * b**2, 0, -(a**2) - b**2, 0, 1],
    ]
    kernel = [[1 / (a**2 * b**2), 0, 0]]
    kernel += [
        [1 / over, at / over, at**2 / over] for over, at in ((over_a, a), (over_a, -a), (over_b, b), (over_b, -b))
    ]
    outputs = [
        [float(power == 0), a**power, (-a) ** power, b**power, (-b) ** power, float(power == 3)] for power in range(4)
    ]
    return inputs, [*kernel, [0, 0, 1]], outputs


_MATRICES = {
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    4: _matrices(0.625, 1.5),  # half the error of the usual 1 and 2
}
