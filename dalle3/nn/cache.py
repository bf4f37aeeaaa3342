"""What decoding remembers: keys and values, and the channels that token shift lends.

Shapes: G groups (captions), n pictures of each, R = G * n rows, P rows with padding, H heads, K width of a head,
S positions attended to, D model width, T caption positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle3.nn.positions import CONV_KERNEL


class KeyValues:
    """Keys and values of one attention: the caption's once for each group, the codes' for each picture.

    They are float32 on a CPU, whose fused attention is five times slower in bfloat16 for a single query.
    """

    def __init__(self, kind: str, *, grid: int, pictures: int, caption: Tensor, size: int, pad: int) -> None:
        """Begins after a caption.

        Args:
            kind: one of `positions.ATTENTION_TYPES`.
            caption: (2, G, H, T, K), its keys and values.
            size: positions that may follow it.
            pad: rows to add below what `attend` returns.
        """
        _, groups, heads, length, width = caption.shape
        self.kind, self.grid, self.pictures, self.rows = kind, grid, pictures, groups * pictures
        dtype = torch.float32 if caption.device.type == "cpu" else caption.dtype
        # a lone picture that sees everything keeps the caption in its own buffer: one attention instead of two
        self.lead = length if kind == "full" and pictures == 1 else 0
        self.caption = None if self.lead else caption.to(dtype)
        self.buffer = torch.zeros(2, self.rows, heads, self.lead + size, width, dtype=dtype, device=caption.device)
        if self.lead:
            self.buffer[..., : self.lead, :] = caption
        self.output = torch.zeros(self.rows + pad, heads * width, dtype=caption.dtype, device=caption.device)
        self.position = 0  # of the next code

    def extend(self, given: Tensor) -> None:
        """Takes in the keys and values (2, G, H, m, K) of codes that all pictures share."""
        end = self.position + given.shape[3]
        self.buffer[..., self.lead + self.position : self.lead + end, :] = given.repeat_interleave(self.pictures, dim=1)
        self.position = end

    def attend(self, qkv: Tensor) -> Tensor:
        """Stores the newest position's keys and values and returns what its queries find.

        Args:
            qkv: (R, 3, H, K).

        Returns:
            (P, H * K), good until the next call.
        """
        self.buffer[:, :, :, self.lead + self.position] = qkv[:, 1:].transpose(0, 1)
        query = qkv[:, 0].to(self.buffer.dtype).unsqueeze(2)  # (R, H, 1, K)
        keys, values = self._seen()
        if self.caption is None:
            found = F.scaled_dot_product_attention(query, keys, values)
        else:
            found = self._with_caption(query, keys, values)
        self.output[: self.rows] = found.flatten(1)
        self.position += 1
        return self.output

    def _seen(self) -> Tensor:
        """(2, R, H, S, K): the newest code, and those before it that it may attend to."""
        newest, col = self.position, self.position % self.grid
        if self.kind == "full":
            return self.buffer[:, :, :, : self.lead + newest + 1]
        if self.kind == "axial_row":
            return self.buffer[:, :, :, newest - col : newest + 1]
        if self.kind == "axial_col":
            return self.buffer[:, :, :, col : newest + 1 : self.grid]
        return self.buffer.index_select(3, _window(self.kind, newest, self.grid).to(self.buffer.device))

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


def _window(kind: str, newest: int, grid: int) -> Tensor:
    """The codes that a convolution-like attention sees from `newest`, itself included, in order."""
    row, col = divmod(newest, grid)
    centred = kind == "conv_like_centred"
    reach = CONV_KERNEL // 2 if centred else CONV_KERNEL - 1
    rows = range(max(row - reach, 0), row + 1)
    cols = range(max(col - reach, 0), min(col + reach * centred, grid - 1) + 1)
    return torch.tensor([r * grid + c for r in rows for c in cols if (r, c) <= (row, col)])


class ShiftRing:
    """Token shift of picture positions, one at a time: the channels lent by the last `grid` codes, in a ring."""

    def __init__(self, like: Tensor, *, rows: int, grid: int) -> None:
        """Begins with no codes; `like` is any tensor (..., D) of the kind to come, `rows` is P."""
        self.grid, self.quarter = grid, like.shape[-1] // 4
        self.ring = like.new_zeros(grid, rows, 2 * self.quarter)
        self.zero = like.new_zeros(rows, self.quarter)
        self.position = 0

    def extend(self, given: Tensor, pictures: int) -> None:
        """Takes in codes that all pictures of a group share, (G, m, D)."""
        lent = given[..., : 2 * self.quarter].repeat_interleave(pictures, dim=0)  # (R, m, D / 2)
        for x in lent.unbind(dim=1):
            self.ring[self.position % self.grid, : len(x)] = x
            self.position += 1

    def __call__(self, x: Tensor) -> Tensor:
        """The newest position's `x` (P, D) with what the codes above and left of it lend."""
        slot, q = self.ring[self.position % self.grid], self.quarter  # the slot still holds the code above
        left = self.ring[(self.position - 1) % self.grid][:, q:] if self.position % self.grid else self.zero
        shifted = torch.cat([slot[:, :q], left, x[:, 2 * q :]], dim=1)
        slot.copy_(x[:, : 2 * q])
        self.position += 1
        return shifted


class ShiftLine:
    """Token shift of caption positions, one at a time: half the channels come from the position before."""

    def __init__(self, like: Tensor, *, rows: int) -> None:
        """Begins before <bos>; arguments as `ShiftRing`'s."""
        self.before = like.new_zeros(rows, like.shape[-1] // 2)

    def extend(self, given: Tensor) -> None:
        """Takes in positions (R, m, D)."""
        self.before[: len(given)] = given[:, -1, : self.before.shape[1]]

    def __call__(self, x: Tensor) -> Tensor:
        """The newest position's `x` (P, D) with what the one before it lends."""
        half = self.before.shape[1]
        shifted = torch.cat([self.before, x[:, half:]], dim=1)
        self.before.copy_(x[:, :half])
        return shifted
