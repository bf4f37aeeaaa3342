"""Multi-head self-attention; causality and sparsity are one tensor, positions and softmax are objects.

Shapes: B batch, N positions, H heads, K width of a head, D model width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle3.nn import blocks

Rotate = Callable[[Tensor], Tensor]  # (B, N, 3, H, K) queries, keys and values -> the same, turned by their positions
Softmax = Callable[[Tensor], Tensor]  # over the last dimension
Record = dict[str, Tensor]  # what a pass leaves behind for a decoder


class Attention(nn.Module):
    """Self-attention with fused projections."""

    mask: Tensor | None

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        *,
        causal: bool = False,
        mask: Tensor | None = None,
        rotate: Rotate | None = None,
        softmax: Softmax | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Builds the layer.

        Args:
            causal: a position sees itself and those before it; the fast form of a triangular `mask`.
            mask: (N, N) bool, True where a row may attend to a column; instead of `causal`.
            rotate: applied to queries, keys and values.
            softmax: replaces the softmax; None is the fused kernel.
            dropout: on the output, while training.
        """
        super().__init__()
        assert not (causal and mask is not None), "the mask says what causality would"
        self.heads, self.dim_head, self.causal = heads, dim_head, causal
        self.rotate, self.softmax, self.dropout = rotate, softmax, dropout
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)
        self.register_buffer("mask", mask, persistent=False)
        self._plans: dict[int, list[blocks.Block]] = {}  # by the number of positions

    def forward(self, x: Tensor, keep: Tensor | None = None, record: Record | None = None) -> Tensor:
        """Mixes the positions of `x` (B, N, D).

        Args:
            keep: (B, N) bool, False where a position is padding that nobody may attend to.
            record: receives "keys" and "values", each (B, H, N, K).
        """
        qkv = self.to_qkv(x).unflatten(-1, (3, self.heads, self.dim_head))  # (B, N, 3, H, K)
        if self.rotate is not None:
            qkv = self.rotate(qkv)
        if keep is None and record is None and self._goes_by_blocks(qkv):
            y = blocks.attend(qkv, self._plan(qkv.shape[1]))
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            if record is not None:
                record["keys"], record["values"] = k, v
            y = self._attend(q, k, v, keep).transpose(1, 2).flatten(2)
        return F.dropout(self.to_out(y), self.dropout, self.training)

    def _goes_by_blocks(self, qkv: Tensor) -> bool:
        """Whether this is training in bfloat16 on a CPU, where blocks take half of the fused kernel's time or less.

        In float32 neither is faster.
        """
        wanted = qkv.requires_grad and qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16
        return wanted and self.softmax is None and not torch.compiler.is_compiling()

    def _plan(self, n: int) -> list[blocks.Block]:
        if n not in self._plans:
            mask = self._visible(n, torch.device("cpu"), None)
            every = torch.ones(n, n, dtype=torch.bool) if mask is None else mask
            self._plans[n] = blocks.plan(every, blocks.MASKED_ROWS if self.mask is not None else blocks.ROWS)
        return self._plans[n]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
        if self.softmax is None and self.causal and keep is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mask = self._visible(q.shape[-2], q.device, keep)
        if self.softmax is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        logits = (q * self.dim_head**-0.5) @ k.mT
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.finfo(logits.dtype).max)
        return self.softmax(logits) @ v

    def _visible(self, n: int, device: torch.device, keep: Tensor | None) -> Tensor | None:
        """(N, N) or (B, 1, N, N) bool, True where a row may attend to a column; None where all may."""
        mask = None if self.mask is None else self.mask[:n, :n]
        if self.causal:
            mask = torch.ones(n, n, dtype=torch.bool, device=device).tril()
        if keep is None:
            return mask
        keep = keep[:, None, None, :n]
        return keep if mask is None else mask & keep


def stable_softmax(logits: Tensor, *, alpha: float = 32.0**2) -> Tensor:
    """The softmax over the last dimension, shifted at 1/alpha of its size so that half precision cannot overflow.

    From CogView, section 2.4 (arXiv:2105.13290), as DALLE-pytorch applies it.
    """
    logits = logits / alpha
    return ((logits - logits.amax(-1, keepdim=True).detach()) * alpha).softmax(-1)
