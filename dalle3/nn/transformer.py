"""A transformer is a list of layers, a layer a list of residual branches.

A branch is `x -> scale * post(fn(shift(pre(x))))`, where any part may be absent. Models differ in the
branches their builders assemble; nothing below reads a configuration.

Shapes: B batch, N positions, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dalle3.nn.attention import Record

Shift = Callable[[Tensor], Tensor]  # (B, N, D) -> (B, N, D), some channels taken from earlier positions


class Branch(nn.Module):
    """One residual branch: attention or feed-forward with what surrounds it."""

    def __init__(
        self,
        fn: nn.Module,
        *,
        pre: nn.Module | None = None,
        shift: Shift | None = None,
        post: nn.Module | None = None,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.pre, self.post = pre or nn.Identity(), post or nn.Identity()
        self.fn, self.shift = fn, shift
        self.scale = None if scale is None else nn.Parameter(scale)

    def forward(self, x: Tensor, keep: Tensor | None = None, record: Record | None = None) -> Tensor:
        """What is added to `x` (B, N, D); `record` receives "shifted", the input of the shift."""
        x = self.pre(x)
        if self.shift is not None:
            if record is not None:
                record["shifted"] = x
            x = self.shift(x)
        x = self.post(self.fn(x, keep, record))
        return x if self.scale is None else x * self.scale


def layer_scale(depth: int) -> float:
    """The first value of a layer's scale, by its depth from 1 (LayerScale, arXiv:2103.17239)."""
    return 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6


class Transformer(nn.Module):
    """Residual layers; `reversible` runs two streams and returns their mean (arXiv:2001.04451).

    Attributes:
        checkpointing: recompute each layer in the backward pass instead of keeping its activations.
    """

    def __init__(self, layers: Sequence[Sequence[Branch]], *, reversible: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList(layer) for layer in layers)
        self.reversible = reversible
        self.checkpointing = False

    def forward(self, x: Tensor, keep: Tensor | None = None, records: Sequence[Record] | None = None) -> Tensor:
        """Transforms `x` (B, N, D).

        Args:
            keep: (B, N) bool, False where a position is padding.
            records: one dict for each branch, in order, to receive what a decoder needs.
        """
        run = _reversible_layer if self.reversible else _residual_layer
        streams, left = (x, x), iter(records or ())
        for layer in self.layers:
            branches = list(layer.children())
            given = [next(left, None) for _ in branches]
            if self.checkpointing and torch.is_grad_enabled():
                streams = checkpoint(run, branches, streams, keep, given, use_reentrant=False)
            else:
                streams = run(branches, streams, keep, given)
        return (streams[0] + streams[1]) / 2 if self.reversible else streams[0]


Streams = tuple[Tensor, Tensor]


def _residual_layer(branches: Sequence[nn.Module], streams: Streams, keep: Tensor | None, records) -> Streams:
    x = streams[0]
    for branch, record in zip(branches, records, strict=True):
        x = x + branch(x, keep, record)
    return x, x


def _reversible_layer(branches: Sequence[nn.Module], streams: Streams, keep: Tensor | None, records) -> Streams:
    (f, g), (a, b) = branches, streams
    a = a + f(b, keep, records[0])
    return a, b + g(a, keep, records[1])
