"""Winograd's convolution compiled from `winograd.c`: all of it stays in the cache, and no operator is waited for.

Shapes: B pictures, C input and O output channels, H W pixels.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_int, c_long, c_void_p
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("winograd.c")
CHANNELS = 16  # C and O are multiples of it


class _Convolution(Structure):
    _fields_ = (
        *((name, c_int) for name in ("threads", "size", "half", "channels_last")),
        *((name, c_int) for name in ("batch", "height", "width", "channels", "outputs")),
        *((name, c_void_p) for name in ("x", "weight", "bias", "out", "kernel", "own")),
    )


class NativeWinograd:
    """Convolves as `winograd.convolve` says.

    Args:
        library: the compiled `winograd.c`.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.convolve.argtypes = library.own_bytes.argtypes = library.kernel_bytes.argtypes = [POINTER(_Convolution)]
        library.own_bytes.restype = library.kernel_bytes.restype = c_long
        self.dtypes = {torch.float32, torch.bfloat16} if library.multiplies_halves() else {torch.float32}

    def takes(self, x: Tensor, weight: Tensor) -> bool:
        """Whether x (B, C, H, W) and `weight` (O, C, 3, 3) can be passed."""
        return x.dtype == weight.dtype and x.dtype in self.dtypes and not any(n % CHANNELS for n in weight.shape[:2])

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor, *, size: int) -> Tensor:
        """The convolution (B, O, H, W), channels_last; `size`, m, must be 2 in bfloat16."""
        (batch, channels, height, width), outputs = x.shape, len(weight)
        x, bias = x.contiguous(memory_format=torch.channels_last), bias.float()
        if not (channels_last := weight.is_contiguous(memory_format=torch.channels_last)):
            weight = weight.contiguous()
        out = x.new_empty(batch, height, width, outputs)
        call = _Convolution(
            threads=torch.get_num_threads(),
            size=size,
            half=x.dtype == torch.bfloat16,
            channels_last=channels_last,
            batch=batch,
            height=height,
            width=width,
            channels=channels,
            outputs=outputs,
            **{
                name: tensor.data_ptr() for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("out", out))
            },
        )
        kernel = torch.empty(self.library.kernel_bytes(byref(call)), dtype=torch.uint8)
        own = torch.empty(call.threads * self.library.own_bytes(byref(call)), dtype=torch.uint8)
        call.kernel, call.own = kernel.data_ptr(), own.data_ptr()
        self.library.convolve(byref(call))
        return out.permute(0, 3, 1, 2)
