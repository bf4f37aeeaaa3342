"""Position-wise feed-forward layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dalle3.nn.attention import Record
from dalle3.nn.geglu import geglu


class GatedFeedForward(nn.Module):
    """down(up(x) * gelu(gate(x))), GEGLU of "GLU variants improve transformer" (arXiv:2002.05202).

    `up` and `gate` are the two halves of one matrix, in this order.
    """

    def __init__(self, dim: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.up_gate = nn.Linear(dim, 2 * hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, keep: Tensor | None = None, record: Record | None = None) -> Tensor:
        """Transforms each position of `x` (B, N, D); `keep` and `record` are attention's, unused here."""
        return self.down(F.dropout(geglu(self.up_gate(x)), self.dropout, self.training))
