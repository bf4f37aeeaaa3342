"""What decoding remembers: keys and values, and the channels that token shift lends.

Shapes: G groups (captions), n pictures of each, R = G * n rows, P rows with padding, H heads, K width of a head,
S positions attended to, D model width, T caption positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle3.nn.positions import CONV_KERNEL

Run = tuple[int, int, int]  # first position, how many, how far apart


class KeyValues:
    """Keys and values of one attention: the caption's once for each group, the codes' for each picture.

    They are float32 on a CPU, whose fused attention is five times slower in bfloat16 for a single query.
    """

    def __init__(self, kind: str, *, grid: int, pictures: int, caption: Tensor, size: int) -> None:
        """Begins after a caption.

        Args:
            kind: one of `positions.ATTENTION_TYPES`.
            caption: (2, G, H, T, K), its keys and values.
            size: positions that may follow it.
        """
        _, groups, heads, length, width = caption.shape
        self.kind, self.grid, self.pictures, self.rows = kind, grid, pictures, groups * pictures
        dtype = torch.float32 if caption.device.type == "cpu" else caption.dtype
        # a lone picture that sees everything keeps the caption in its own buffer: one attention instead of two
        self.lead = length if kind == "full" and pictures == 1 else 0
        self.caption = None if self.lead else caption.to(dtype).contiguous()
        self.buffer = torch.zeros(2, self.rows, heads, self.lead + size, width, dtype=dtype, device=caption.device)
        if self.lead:
            self.buffer[..., : self.lead, :] = caption
        self.position = 0  # of the next code

    def extend(self, given: Tensor) -> None:
        """Takes in the keys and values (2, G, H, m, K) of codes that all pictures share."""
        end = self.position + given.shape[3]
        self.buffer[..., self.lead + self.position : self.lead + end, :] = given.repeat_interleave(self.pictures, dim=1)
        self.position = end

    def next(self) -> tuple[int, list[Run]]:
        """Where in the buffer the newest code goes, and the runs of it, that place included, which it sees."""
        newest = self.position
        self.position += 1
        return self.lead + newest, self._runs(newest)

    def attend(self, qkv: Tensor) -> Tensor:
        """Stores the newest position's keys and values and returns what its queries find, (R, H, K).

        Args:
            qkv: (R, 3, H, K).
        """
        place, runs = self.next()
        self.buffer[:, :, :, place] = qkv[:, 1:].transpose(0, 1)
        query = qkv[:, 0].to(self.buffer.dtype).unsqueeze(2)  # (R, H, 1, K)
        keys, values = self._seen(runs)
        if self.caption is None:
            return F.scaled_dot_product_attention(query, keys, values).squeeze(2)
        return self._with_caption(query, keys, values)

    def _runs(self, newest: int) -> list[Run]:
        row, col = divmod(newest, self.grid)
        if self.kind == "full":
            return [(0, self.lead + newest + 1, 1)]
        if self.kind == "axial_row":
            return [(newest - col, col + 1, 1)]
        if self.kind == "axial_col":
            return [(col, row + 1, self.grid)]
        centred = self.kind == "conv_like_centred"
        reach = CONV_KERNEL // 2 if centred else CONV_KERNEL - 1
        first, last = max(col - reach, 0), min(col + reach * centred, self.grid - 1)
        rows_above = [(r * self.grid + first, last - first + 1, 1) for r in range(max(row - reach, 0), row)]
        return [*rows_above, (newest - col + first, col - first + 1, 1)]

    def _seen(self, runs: list[Run]) -> Tensor:
        """(2, R, H, S, K), the buffer's `runs`."""
        if len(runs) == 1:
            first, count, step = runs[0]
            return self.buffer[:, :, :, first : first + count * step : step]
        return torch.cat([self.buffer[:, :, :, first : first + count] for first, count, _ in runs], dim=3)

    def _with_caption(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention (R, H, K) over the caption and the codes, joined from the two apart by their masses."""
        assert self.caption is not None
        grouped = query.squeeze(2).unflatten(0, (-1, self.pictures)).transpose(1, 2)  # (G, H, n, K)
        caption, caption_mass = attention_with_mass(grouped, self.caption[0], self.caption[1])
        codes, codes_mass = attention_with_mass(query, keys, values)
        share = torch.sigmoid(caption_mass.transpose(1, 2).flatten(0, 1) - codes_mass.squeeze(2))  # (R, H)
        return torch.lerp(codes.squeeze(2), caption.transpose(1, 2).flatten(0, 1), share.unsqueeze(-1).to(codes.dtype))


def attention_with_mass(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (B, H, n, K) and the logarithm of its normaliser (B, H, n), float32, by which two can be joined."""
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, keys, values)
    logits = (query @ keys.mT).float() * query.shape[-1] ** -0.5
    mass = logits.logsumexp(dim=-1)
    return (logits - mass.unsqueeze(-1)).exp().to(values.dtype) @ values, mass


class Lender:
    """Token shift, one position at a time: what a position's neighbours lend it."""

    quarter: int  # of the channels, D / 4
    zero: Tensor  # (P, 2 * quarter)

    def next(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """What the codes above and left lend the newest position, and where it leaves what it lends, (P, D / 2) each.

        The last may be the first's memory: read before writing. No left neighbour is None.
        """
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """The newest position's `x` (P, D) with what its neighbours lend."""
        q = self.quarter
        above, left, store = self.next()
        shifted = torch.cat([above[:, :q], (self.zero if left is None else left)[:, q:], x[:, 2 * q :]], dim=1)
        store.copy_(x[:, : 2 * q])
        return shifted


class ShiftRing(Lender):
    """Lends to picture positions: the last `grid` codes, in a ring."""

    def __init__(self, *, rows: int, dim: int, grid: int, dtype: torch.dtype, device: torch.device) -> None:
        """Begins with no codes; `rows` is P."""
        self.grid, self.quarter = grid, dim // 4
        self.ring = torch.zeros(grid, rows, 2 * self.quarter, dtype=dtype, device=device)
        self.zero = torch.zeros_like(self.ring[0])
        self.position = 0

    def extend(self, given: Tensor, pictures: int) -> None:
        """Takes in codes that all pictures of a group share, (G, m, D)."""
        lent = given[..., : 2 * self.quarter].repeat_interleave(pictures, dim=0)  # (R, m, D / 2)
        for x in lent.unbind(dim=1):
            self.ring[self.position % self.grid, : len(x)] = x
            self.position += 1

    def next(self) -> tuple[Tensor, Tensor | None, Tensor]:
        slot = self.ring[self.position % self.grid]  # still holds the code above
        left = self.ring[(self.position - 1) % self.grid] if self.position % self.grid else None
        self.position += 1
        return slot, left, slot


class ShiftLine(Lender):
    """Lends to caption positions: half the channels come from the position before."""

    def __init__(self, *, rows: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        """Begins before <bos>; `rows` is P."""
        self.quarter = dim // 4
        self.before = torch.zeros(rows, 2 * self.quarter, dtype=dtype, device=device)
        self.zero = torch.zeros_like(self.before)

    def extend(self, given: Tensor) -> None:
        """Takes in positions (R, m, D)."""
        self.before[: len(given)] = given[:, -1, : 2 * self.quarter]

    def next(self) -> tuple[Tensor, Tensor | None, Tensor]:
        return self.before, self.before, self.before
