"""Branches laid out once for decoding, in PyTorch's operators: the form for GPUs and for CPUs without a C compiler.

On a CPU the products run over oneDNN's packed weights, the operators that torch.compile emits: PyTorch's own float32
product of a few rows with a 512-wide matrix reads memory at 8 to 13 GB/s where they reach 30.

Shapes: R rows, P rows with padding, I inputs, O outputs, H heads, K width of a head, D model width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle3.nn.attention import Attention
from dalle3.nn.cache import KeyValues, Lender
from dalle3.nn.feedforward import GatedFeedForward
from dalle3.nn.positions import GridRotary
from dalle3.nn.transformer import Branch

MIN_ROWS = 4  # fewer rows take oneDNN's slower path: 8.7 ms against 6.4 for the same weights

# (target, source, position) -> target plus the branch of source; both (P, D), the newest position's
Step = Callable[[Tensor, Tensor, int], Tensor]


class PackedLinear:
    """x W^T + b, and what may follow it in the same pass over memory."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Copies `weight` (O, I) into the layout; `bias` (O,) is kept as it is."""
        weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        self.packed = _packs(weight)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, MIN_ROWS) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """(R, O) of `x` (R, I)."""
        if not self.packed:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """gelu(x W^T + b), the exact one."""
        if not self.packed:
            return F.gelu(self(x))
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "none")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """(x W^T + b) * factor, with `factor` (R, O)."""
        if not self.packed:
            return self(x) * factor
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.weight, self.bias, "mul")

    def plus(self, x: Tensor, term: Tensor) -> Tensor:
        """x W^T + b + term, with `term` (R, O)."""
        if not self.packed:
            return self(x) + term
        return torch.ops.mkldnn._linear_pointwise.binary(x, term, self.weight, self.bias, "add")


def _packs(weight: Tensor) -> bool:
    """Whether this machine's PyTorch has the packed operators for `weight`; for bfloat16 AVX2 is not enough."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class PackedBranch:
    """What both kinds of residual branch share: the norm before, and the scaled sum behind."""

    def __init__(self, branch: Branch) -> None:
        self.norm, self.post, self.scale = branch.pre, branch.post, branch.scale
        self.folds = isinstance(branch.post, nn.Identity)  # then the scale goes into the last product's weights

    def pre(self, x: Tensor, lender: Lender | None) -> Tensor:
        """`x` (P, D) normalised and shifted."""
        x = self.norm(x)
        return x if lender is None else lender(x)

    def last(self, linear: nn.Linear) -> PackedLinear:
        """The branch's last product, its scale within where that is possible."""
        if not self.folds or self.scale is None:
            return PackedLinear(linear.weight, linear.bias)
        return PackedLinear(linear.weight * self.scale[:, None], linear.bias * self.scale)

    def close(self, last: PackedLinear, y: Tensor, x: Tensor) -> Tensor:
        """`x` (P, D) plus the branch, whose last product takes `y`."""
        if self.folds:
            return last.plus(y, x)
        y = self.post(last(y))
        return x + y if self.scale is None else torch.addcmul(x, y, self.scale)


class PackedAttention(PackedBranch):
    """An attention branch."""

    def __init__(self, branch: Branch, attention: Attention) -> None:
        super().__init__(branch)
        assert attention.rotate is None or isinstance(attention.rotate, GridRotary)
        self.heads, self.dim_head = attention.heads, attention.dim_head
        self.table = attention.rotate.table(attention.to_qkv.weight.device) if attention.rotate else None
        self.to_qkv, self.to_out = PackedLinear(attention.to_qkv.weight), self.last(attention.to_out)

    def bind(self, lender: Lender | None, cache: KeyValues | None, rows: int) -> Step:
        """The branch with its memory."""
        assert cache is not None

        def step(target: Tensor, source: Tensor, position: int) -> Tensor:
            qkv = self.to_qkv(self.pre(source, lender))[: cache.rows].view(-1, 3, self.heads, self.dim_head)
            if self.table is not None:
                pairs = torch.view_as_complex(qkv.float().unflatten(-1, (-1, 2)))
                qkv = torch.view_as_real(pairs * self.table[position]).flatten(-2)
            found = cache.attend(qkv).flatten(1).to(source.dtype)
            return self.close(self.to_out, F.pad(found, (0, 0, 0, len(source) - cache.rows)), target)

        return step


class PackedFeedForward(PackedBranch):
    """A gated feed-forward branch."""

    def __init__(self, branch: Branch, layer: GatedFeedForward) -> None:
        super().__init__(branch)
        (up, gate), (up_bias, gate_bias) = layer.up_gate.weight.chunk(2), layer.up_gate.bias.chunk(2)
        self.up, self.gate, self.down = PackedLinear(up, up_bias), PackedLinear(gate, gate_bias), self.last(layer.down)

    def bind(self, lender: Lender | None, cache: KeyValues | None, rows: int) -> Step:
        """The branch with its memory; `cache` is attention's."""

        def step(target: Tensor, source: Tensor, position: int) -> Tensor:
            x = self.pre(source, lender)
            return self.close(self.down, self.up.times(x, self.gate.gelu(x)), target)

        return step


class PackedEngine:
    """Lays out branches and products for decoding, and says how the rows of activations must be."""

    min_rows = MIN_ROWS

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype  # of activations

    def branch(self, branch: nn.Module) -> PackedAttention | PackedFeedForward:
        """The `Branch` laid out."""
        assert isinstance(branch, Branch)
        if isinstance(branch.fn, Attention):
            return PackedAttention(branch, branch.fn)
        assert isinstance(branch.fn, GatedFeedForward)
        return PackedFeedForward(branch, branch.fn)

    def linear(self, weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
        """(P, O) of (P, I)."""
        return PackedLinear(weight, bias)
