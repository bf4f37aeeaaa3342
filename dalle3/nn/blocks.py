"""Exact attention in blocks of queries, each with the keys it may see: what training on a CPU uses.

PyTorch's fused kernel for CPUs is no faster in bfloat16 than in float32, and computes what a mask hides. Here a block's
scores stay in the cache, keys that no row of it sees are left out, and the backward pass computes the scores anew, so
memory grows with N, not with N * N.

Shapes: B batch, N positions, H heads, K width of a head, R rows of a block, S keys it sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS, MASKED_ROWS = 128, 64  # of a block at most: what is common to all, and where a mask leaves out more
CACHED = 1 << 20  # scores of a block computed at once, so many that they stay in a core's share of the cache


@dataclass(frozen=True)
class Block:
    """Some queries and the keys any of them sees; positions are slices where they can be."""

    rows: Tensor | slice
    keys: Tensor | slice
    bias: Tensor | None  # (R, S) float32, -inf where a row must not see a key and 0 elsewhere; None where it sees all


def plan(mask: Tensor, most: int) -> list[Block]:
    """Blocks of at most `most` queries for `mask` (N, N), True where a row may see a column; all rows see some.

    Rows that first look at the same place are put together: a column of a picture becomes a block as a row does.
    """
    n = len(mask)
    common = (mask | ~torch.ones_like(mask).tril()).all(0)  # seen from everywhere behind, as a caption is
    own = mask & ~common
    first = torch.where(own.any(1), own.int().argmax(1), -1)
    count = -(-n // most)
    return [_block(mask, rows) for rows in first.argsort(stable=True).tensor_split(count)]


def _block(mask: Tensor, rows: Tensor) -> Block:
    rows = rows.sort().values
    keys = mask[rows].any(0).nonzero()[:, 0]
    hidden = ~mask[rows][:, keys]
    bias = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf) if hidden.any() else None
    return Block(_range(rows), _range(keys), bias)


def _range(positions: Tensor) -> Tensor | slice:
    """Ascending positions, as a slice where there is no gap between them."""
    start, stop = int(positions[0]), int(positions[-1]) + 1
    return slice(start, stop) if stop - start == len(positions) else positions


def attend(qkv: Tensor, blocks: list[Block]) -> Tensor:
    """Attention (B, N, H * K) of queries, keys and values (B, N, 3, H, K)."""
    return _Attend.apply(qkv, blocks)  # type: ignore[no-any-return]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, blocks: list[Block]) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.blocks = blocks
        out = torch.empty_like(qkv[:, :, 0])
        with torch.autocast(qkv.device.type, enabled=False):
            for part, y in _parts(qkv, out, blocks=blocks):
                q, k, v = _scaled(part)
                for block in blocks:
                    seen = _weights(q[:, block.rows], k[:, block.keys], block) @ v[:, block.keys]
                    y[:, block.rows] = seen.unflatten(0, (len(y), -1)).transpose(1, 2)
        return out.flatten(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (qkv,), blocks = ctx.saved_tensors, ctx.blocks
        result = torch.empty_like(qkv)
        gradient = gradient.unflatten(-1, qkv.shape[-2:])[:, :, None]
        for part, g, into in _parts(qkv, gradient, result, blocks=blocks):
            found = _gradients(_scaled(part), _heads(g)[0], blocks)
            into.copy_(found.unflatten(1, (len(part), -1)).permute(1, 3, 0, 2, 4))
        return result, None


def _parts(*tensors: Tensor, blocks: list[Block]) -> Iterator[tuple[Tensor, ...]]:
    """The tensors (B, ...) in the same few pictures at a time."""
    _, n, _, heads, _ = tensors[0].shape
    size = max(1, CACHED * len(blocks) // (heads * n * n))
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def _heads(x: Tensor) -> Tensor:
    """(B, N, c, H, K) as (c, B * H, N, K), copied, for products read rows that follow each other fastest."""
    return x.permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous()


def _scaled(qkv: Tensor) -> Tensor:
    """`_heads`, the queries divided by the root of their width."""
    copied = _heads(qkv)
    copied[0] *= qkv.shape[-1] ** -0.5
    return copied


def _weights(q: Tensor, k: Tensor, block: Block) -> Tensor:
    """How much each scaled query attends to each key, (B * H, R, S)."""
    scores = q @ k.mT if block.bias is None else torch.baddbmm(block.bias.to(q), q, k.mT)
    return scores.softmax(-1)


def _gradients(qkv: Tensor, gradient: Tensor, blocks: list[Block]) -> Tensor:
    """The gradients of queries, keys and values (3, B * H, N, K), added up in float32, of the output's."""
    found = torch.zeros(qkv.shape, dtype=torch.float32, device=qkv.device)
    (q, k, v), (to_q, to_k, to_v) = qkv, found
    for block in blocks:
        here, there, g = q[:, block.rows], k[:, block.keys], gradient[:, block.rows]
        weights = _weights(here, there, block)
        scores = torch.ops.aten._softmax_backward_data(g @ v[:, block.keys].mT, weights, -1, weights.dtype)
        to_q[:, block.rows] = (scores @ there).to(found.dtype)
        to_k[:, block.keys] += scores.mT @ here
        to_v[:, block.keys] += weights.mT @ g
    to_q *= q.shape[-1] ** -0.5
    return found
