"""up * gelu(gate), the middle of a gated feed-forward; in bfloat16 on a CPU by C that reads each value once.

PyTorch takes five operators and their copies for it and its gradients, a fifth of a training step there.

Shapes: H hidden width.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_int, c_long, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dalle3 import compiled

SOURCE = Path(__file__).with_name("geglu.c")


def geglu(up_gate: Tensor) -> Tensor:
    """(..., H) of `up_gate` (..., 2 H), whose halves are `up` and `gate` (GEGLU, arXiv:2002.05202)."""
    if _goes_by_c(up_gate):
        return _Geglu.apply(up_gate)  # type: ignore[no-any-return]
    up, gate = up_gate.chunk(2, dim=-1)
    return up * F.gelu(gate)


def _goes_by_c(x: Tensor) -> bool:
    wanted = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.is_contiguous()
    return wanted and not torch.compiler.is_compiling() and _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    loaded = compiled.library(SOURCE)
    if loaded is not None:
        loaded.forward.argtypes = [c_int, c_long, c_long, *[c_void_p] * 2]
        loaded.backward.argtypes = [c_int, c_long, c_long, *[c_void_p] * 3]
    return loaded


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        _call("forward", x, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        result = torch.empty_like(x)
        _call("backward", x, gradient.contiguous(), result)
        return result


def _call(name: str, x: Tensor, *others: Tensor) -> None:
    """One of the C functions, on `x` (..., 2 H) and what stands beside it."""
    hidden = x.shape[-1] // 2
    rows = x.numel() // (2 * hidden)
    getattr(_library(), name)(torch.get_num_threads(), rows, hidden, *(t.data_ptr() for t in (x, *others)))
