"""The cross-entropy of a linear layer's logits, some rows at a time, so that the logits are never all there.

Shapes: R rows, D width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

AT_ONCE = {"cpu": 1 << 21}  # logits, which then stay in a CPU's cache
AT_ONCE_ELSEWHERE = 1 << 27


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy in nats, a float32 scalar, of logits x W^T + b for `targets` (R,).

    Its gradients are computed along with it, as the logits are gone afterwards.

    Args:
        x: (R, D); products are in its number format, or in autocast's.
        weight: (C, D).
        bias: (C,).
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        return _LinearCrossEntropy.apply(x, weight, bias, targets, dtype)  # type: ignore[no-any-return]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        total, found = torch.zeros((), device=x.device), None
        if any(ctx.needs_input_grad):
            found = _Gradients(x, weight, bias)
        w, b = weight.to(dtype), bias.to(dtype)
        size = max(1, AT_ONCE.get(x.device.type, AT_ONCE_ELSEWHERE) // len(weight))
        for start in range(0, len(x), size):
            rows = x[start : start + size].to(dtype)
            right = targets[start : start + size, None]
            logs = torch.addmm(b, rows, w.mT).float().log_softmax(-1)
            total -= logs.gather(1, right).sum()
            if found is not None:
                errors = logs.exp_().scatter_add_(1, right, -torch.ones_like(logs[:, :1]))
                found.add(start, errors.div_(len(x)), rows, w)
        if found is not None:
            ctx.save_for_backward(found.x, found.weight, found.bias)
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (*(found * gradient for found in ctx.saved_tensors), None, None)


class _Gradients:
    """The loss's, by its inputs."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.x, self.weight, self.bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)

    def add(self, start: int, errors: Tensor, rows: Tensor, weight: Tensor) -> None:
        """Adds what some rows give: `errors` (r, C) float32, by their logits; `rows` (r, D), and the weights used."""
        self.bias += errors.sum(0)
        errors = errors.to(rows.dtype)
        self.x[start : start + len(rows)] = errors @ weight
        if self.weight.dtype == rows.dtype:
            self.weight.addmm_(errors.mT, rows)
        else:
            self.weight += errors.mT @ rows
