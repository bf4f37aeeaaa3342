"""3x3 convolutions with fewer multiplications, on CPUs: Winograd's minimal filtering.

Nearly all the time of a UNet on a CPU goes into 3x3 convolutions that already run at the peak of its arithmetic
(114 of about 118 GFLOP/s a core where this was written), so only fewer multiplications make it faster. Output tiles
of m x m pixels cost (m + 2)^2 products instead of 9 m^2: 4 times fewer at m = 4, 2.25 times at m = 2.

There are two ways to do it: C (`winograd_native.py`), which a program that can compile it switches on with `use`, and
PyTorch's operators. Measured on two cores against the direct kernel, at 256 channels and 256 pixels: 3.2x and 1.8x in
float32 at m = 4, with an error of 2e-6 of the largest output where the direct kernel's is 3e-7; 2.0x and 1.4x at m = 2,
with 5e-7; and 1.7x and 1.1x in bfloat16, where m = 4 would err by 2e-2 and m = 2 does by 3e-3 and 4e-3 (the direct
kernel: 2e-3, root mean square). Whole networks err no more for it: GumbelVQ f8 by 1.1e-5 instead of 9e-6.

From "Fast Algorithms for Convolutional Neural Networks" (arXiv:1509.09308). Shapes: B pictures, C input and O output
channels, H W pixels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion import winograd_native, winograd_operators
from diffusion.winograd_native import NativeWinograd


class Least(NamedTuple):
    """Below these the transforms cost more than the multiplications they save."""

    channels: int
    tiles: int


# By number format and m, the first that fits being the fastest.
BY_OPERATORS = {
    (torch.float32, 4): Least(128, 256),
    (torch.float32, 2): Least(128, 256),
    (torch.bfloat16, 2): Least(128, 1024),
}
NATIVE = {
    (torch.float32, 4): Least(32, 64),
    (torch.float32, 2): Least(32, 256),
    (torch.bfloat16, 2): Least(128, 256),
}

Compile = Callable[[Path], ctypes.CDLL | None]
_compile: Compile | None = None


def use(compile: Compile | None) -> None:
    """Has this process convolve by C that `compile` is asked for when first needed; by operators where it has none."""
    global _compile
    if compile is not _compile:
        _compile = compile
        _native.cache_clear()


def tile_size(x: Tensor, weight: Tensor) -> int | None:
    """The m with which x (B, C, H, W) is best convolved with `weight` (O, C, 3, 3); None for the direct kernel."""
    learns = torch.is_grad_enabled() and weight.requires_grad
    left = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")  # to whoever picks kernels and formats
    if x.device.type != "cpu" or learns or left:
        return None
    height, width = x.shape[2:]
    native = _native_for(x, weight)
    together = len(x) if native else 1  # operators take one picture after another
    for (dtype, size), least in (NATIVE if native else BY_OPERATORS).items():
        fits = height % size == 0 and width % size == 0 and min(weight.shape[:2]) >= least.channels
        if x.dtype == dtype and fits and together * (height // size) * (width // size) >= least.tiles:
            return size
    return None


def convolve(x: Tensor, weight: Tensor, bias: Tensor, *, size: int) -> Tensor:
    """The convolution (B, O, H, W), channels_last, of x (B, C, H, W) with a border of one zero pixel.

    It is differentiable in x and `bias`.

    Args:
        x: H and W multiples of `size`.
        weight: (O, C, 3, 3).
        bias: (O,).
        size: m, 2 or 4.
    """
    return _Convolution.apply(x, weight, bias, size)  # pyright: ignore[reportReturnType]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size = size  # pyright: ignore[reportAttributeAccessIssue]
        return _convolve(x, weight, bias, size)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The way back is a convolution too: with the kernel turned around, outputs and inputs swapped."""
        (weight,) = ctx.saved_tensors
        turned, nothing = weight.flip(2, 3).transpose(0, 1), weight.new_zeros(weight.shape[1])
        offset = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return _convolve(gradient, turned, nothing, ctx.size), None, offset, None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, size: int) -> Tensor:
    return (_native_for(x, weight) or winograd_operators).convolve(x, weight, bias, size=size)


def _native_for(x: Tensor, weight: Tensor) -> NativeWinograd | None:
    native = _native()
    return native if native and native.takes(x, weight) else None


@cache
def _native() -> NativeWinograd | None:
    library = _compile and _compile(winograd_native.SOURCE)
    return library and NativeWinograd(library)
