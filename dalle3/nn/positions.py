"""What tells a caption-and-picture transformer where a position is: rotations, token shift, masks.

Shapes: B batch, T caption positions with <bos>, G side of the code grid, N = T + G * G positions,
H heads, K width of a head, D model width.
"""

from __future__ import annotations

import math
from typing import Any

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
        return _Shift.apply(x, self.text_len, self.grid)  # type: ignore[no-any-return]


class _Shift(torch.autograd.Function):
    """Copies from place to place: a dozen operators and their gradients would take as long as a product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, text_len: int, grid: int) -> Tensor:
        ctx.sizes = text_len, grid
        half, quarter, shifted = x.shape[-1] // 2, x.shape[-1] // 4, x.clone()
        text, image = shifted[:, :text_len], shifted[:, text_len:]
        _move(x[:, :text_len, :half], text[..., :half], 1)
        _move(x[:, text_len:, :quarter], image[..., :quarter], grid)
        _move(x[:, text_len:, quarter:half], image[..., quarter:half], 1)
        image[:, ::grid, quarter:half] = 0  # nothing is left of the first column
        return shifted

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        text_len, grid = ctx.sizes
        half, quarter, back = gradient.shape[-1] // 2, gradient.shape[-1] // 4, gradient.clone()
        text, image = back[:, :text_len], back[:, text_len:]
        _move(gradient[:, :text_len, :half], text[..., :half], -1)
        _move(gradient[:, text_len:, :quarter], image[..., :quarter], -grid)
        _move(gradient[:, text_len:, quarter:half], image[..., quarter:half], -1)
        image[:, grid - 1 :: grid, quarter:half] = 0
        return back, None, None


def _move(source: Tensor, target: Tensor, by: int) -> None:
    """Makes `target` (B, n, d) `source` moved `by` positions on, or back where it is negative; zeros come after it."""
    n = source.shape[1]
    first, last = min(max(by, 0), n), max(min(n + by, n), 0)
    target[:, :first] = 0
    target[:, last:] = 0
    if first < last:
        target[:, first:last] = source[:, first - by : last - by]


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
