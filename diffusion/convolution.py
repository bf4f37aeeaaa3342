"""Convolutions by whichever algorithm is fastest where they run; parameters are those of `nn.Conv2d`.

Shapes: B pictures, C channels, H W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion import winograd


class Convolution(nn.Conv2d):
    """A 3x3 convolution that keeps H and W, by whichever algorithm is fastest."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (B, C, H, W) to (B, out_channels, H, W)."""
        size = winograd.tile_size(x, self.weight)
        if size is None or self.bias is None:
            return super().forward(x)
        return winograd.convolve(x, self.weight, self.bias, size=size)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution as a matrix product: PyTorch's float32 kernel on CPUs unfolds the picture first."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (B, C, H, W) to (B, out_channels, H, W), channels_last."""
        return F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)
