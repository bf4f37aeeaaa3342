"""Weights and inputs that need no storing: an exact integer hash of a tensor's name, turned into float32.

A tensor depends on its own name and shape alone, so whoever has the same names has the same weights bit for bit.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def hash_uniform(count: int, seed: int) -> np.ndarray:
    """`count` float64 numbers in (-1, 1)."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(seed & 0xFFFFFFFF)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return (x.astype(np.float64) + 0.5) / 2.0**31 - 1.0


def recipe_tensor(name: str, shape: Sequence[int], gain: float = 1.0) -> Tensor:
    """A parameter: matrices scaled by their fan-in, weights of norms around 1, biases around 0."""
    uniform = hash_uniform(math.prod(shape), zlib.crc32(name.encode()))
    if len(shape) >= 2:
        values = uniform * (gain * math.sqrt(3.0 / max(1, math.prod(shape[1:]))))
    elif name.endswith("weight"):
        values = 1.0 + 0.2 * uniform
    else:
        values = 0.1 * uniform
    return torch.from_numpy(values.astype(np.float32)).reshape(tuple(shape))


def recipe_input(name: str, shape: Sequence[int], scale: float = 1.0) -> Tensor:
    """An input in (-scale, scale)."""
    values = scale * hash_uniform(math.prod(shape), zlib.crc32(name.encode()))
    return torch.from_numpy(values.astype(np.float32)).reshape(tuple(shape))


def recipe_state(shapes: Mapping[str, Sequence[int]], gain: float = 1.0) -> dict[str, Tensor]:
    """The parameters of every name in `shapes`."""
    return {name: recipe_tensor(name, shape, gain) for name, shape in shapes.items()}
