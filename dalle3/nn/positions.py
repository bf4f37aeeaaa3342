"""What tells a caption-and-picture transformer where a position is: rotations, token shift, masks.

Shapes: B batch, T caption positions with <bos>, G side of the code grid, N = T + G * G positions,
H heads, K width of a head, D model width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

IMAGE_AS_TEXT = 8192.0  # where pictures stand in the order of the caption: far behind it
TEXT_AS_PIXEL = -10.0  # where captions stand on the picture's axes: far outside [-1, 1]
CONV_KERNEL = 5

ATTENTION_TYPES = ("full", "axial_row", "axial_col", "conv_like", "conv_like_centred")


class GridRotary:
    """Rotary embedding over caption order, picture row and picture column, a third of each head for each.

    As in DALLE-pytorch it turns the values too, not only queries and keys. Rotary embedding: arXiv:2104.09864.
    The tables stay float32 whatever the model's number format.
    """

    def __init__(self, dim_head: int, text_len: int, grid: int) -> None:
        assert dim_head % 2 == 0, "channels are turned in pairs"
        self._tables = {torch.device("cpu"): _rotations(dim_head, text_len, grid)}

    def table(self, device: torch.device) -> Tensor:
        """(N, K / 2) complex64: the rotation of each channel pair at each position; 1 where a pair is left alone."""
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]

    def __call__(self, qkv: Tensor) -> Tensor:
        """`qkv` (B, N, 3, H, K) turned by the first N positions."""
        table = self.table(qkv.device)[: qkv.shape[1], None, None]
        pairs = torch.view_as_complex(qkv.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * table).flatten(-2).to(qkv.dtype)


def _rotations(dim_head: int, text_len: int, grid: int) -> Tensor:
    width = dim_head // 3 // 2  # pairs for each of the three axes
    cpu = torch.device("cpu")  # real numbers even where the model is being built on "meta"
    order = torch.cat([torch.arange(text_len, device=cpu), torch.full((grid * grid,), IMAGE_AS_TEXT, device=cpu)])
    axis = torch.linspace(-1, 1, grid, device=cpu)
    outside = torch.full((text_len,), TEXT_AS_PIXEL, device=cpu)
    row, col = torch.cat([outside, axis.repeat_interleave(grid)]), torch.cat([outside, axis.repeat(grid)])
    exponents = torch.arange(0, 2 * width, 2, device=cpu).float() / (dim_head // 3)
    language = 1.0 / 10000**exponents
    pixel = torch.linspace(1.0, 5.0, width, device=cpu) * math.pi
    angles = torch.cat([torch.outer(order, language), torch.outer(row, pixel), torch.outer(col, pixel)], dim=1)
    rest = torch.zeros(len(angles), dim_head // 2 - angles.shape[1], device=cpu)
    return torch.polar(torch.ones_like(torch.cat([angles, rest], 1)), torch.cat([angles, rest], 1))


class TokenShift:
    """Lends each position some channels of its neighbours, zeros where there is none.

    A caption position takes its first half from the one before it; a picture position takes its first quarter
    from above and its second from the left, never from the caption. From DALLE-pytorch.
    """

    def __init__(self, text_len: int, grid: int) -> None:
        self.text_len, self.grid = text_len, grid

    def __call__(self, x: Tensor) -> Tensor:
        """`x` (B, n, D) of the first n positions, shifted."""
        text, image = x[:, : self.text_len], x[:, self.text_len :]
        half, quarter = x.shape[-1] // 2, x.shape[-1] // 4
        parts = [torch.cat([_later(text[..., :half], 1), text[..., half:]], dim=-1)]
        if count := image.shape[1]:
            column = torch.arange(count, device=x.device) % self.grid
            above = _later(image[..., :quarter], self.grid)
            left = _later(image[..., quarter:half], 1) * (column > 0)[:, None]
            parts.append(torch.cat([above, left, image[..., half:]], dim=-1))
        return torch.cat(parts, dim=1)


def _later(x: Tensor, by: int) -> Tensor:
    """`x` (B, n, D) moved `by` positions on, zeros in front."""
    n = x.shape[1]
    return torch.nn.functional.pad(x, (0, 0, by, 0))[:, :n]


def attention_mask(kind: str, text_len: int, grid: int) -> Tensor:
    """(N, N) bool: may position i (row) attend to position j (column)? All kinds are causal and see the caption.

    `kind` is one of ATTENTION_TYPES. "conv_like" sees the 5x5 codes above and left of a code, as dalle-pytorch
    does since 1.5.0; "conv_like_centred" the 5x5 codes around it, as before that and in the DALL-3 fork.
    """
    n = text_len + grid * grid
    cpu = torch.device("cpu")
    i, j = torch.arange(n, device=cpu)[:, None], torch.arange(n, device=cpu)[None, :]
    down = (i - text_len) // grid - (j - text_len) // grid
    right = (i - text_len) % grid - (j - text_len) % grid
    reach = CONV_KERNEL // 2
    near = {
        "full": torch.ones(n, n, dtype=torch.bool, device=cpu),
        "axial_row": down == 0,
        "axial_col": right == 0,
        "conv_like": (down < CONV_KERNEL) & (right >= 0) & (right < CONV_KERNEL),
        "conv_like_centred": (down.abs() <= reach) & (right.abs() <= reach),
    }[kind]
    return (j <= i) & ((j < text_len) | near)
