"""The parts of the UNet. Parameter names are those of guided-diffusion, so that its checkpoints load unchanged.

Shapes: B pictures, C channels, H W pixels, E width of the timestep embedding. An embedding is (B, E), or (1, E)
where one timestep is shared by the whole batch, which is cheaper: its scale and shift then fold into the norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion.convolution import Convolution, Pointwise

Resample = Callable[[Tensor], Tensor]

GROUPS = 32


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Cosines then sines (B, width), float32, of timesteps (B,) that may be fractional."""
    half = width // 2
    # In this order of operations: at timestep 999 its rounding reaches 1e-4 of an angle.
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


class Norm(nn.GroupNorm):
    """Group normalisation with 32 groups whose parameters stay float32, whatever the activations are."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=1e-5)

    def forward(self, x: Tensor, scale_shift: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (B, C, H, W) normalised, then times 1 + scale plus shift, where those (1 or B, 2C) are given."""
        weight, bias = self.weight, self.bias
        if scale_shift is not None and len(scale_shift) == 1:
            scale, shift = scale_shift[0].to(weight).chunk(2)
            weight, bias = weight * (1 + scale), bias * (1 + scale) + shift
        x = self._normalise(x, weight, bias)
        if scale_shift is not None and len(scale_shift) > 1:
            scale, shift = scale_shift.to(x)[:, :, None, None].chunk(2, dim=1)
            x = torch.addcmul(shift, x, 1 + scale)
        return x

    def _normalise(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # The kernels keep statistics in float32 themselves; only the CPU's takes float32 parameters beside less.
        if x.device.type != "cpu":
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


def silu(x: Tensor) -> Tensor:
    """SiLU of x, in place where no gradient needs x."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def zeroed(module: nn.Module) -> nn.Module:
    """`module`, its parameters set to zero, so that its branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Upsample(nn.Module):
    """Twice the size, by repeating pixels and convolving."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(doubled(x))


class Downsample(nn.Module):
    """Half the size, by a convolution of stride 2."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def doubled(x: Tensor) -> Tensor:
    """x with every pixel repeated 2x2."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def halved(x: Tensor) -> Tensor:
    """x with every 2x2 pixels averaged."""
    return F.avg_pool2d(x, 2)


class ResBlock(nn.Module):
    """Two convolutions with a residual around them, steered by the timestep embedding between them.

    Args:
        channels: C of the input.
        out_channels: of the output.
        emb_channels: E.
        dropout: before the second convolution.
        use_scale_shift_norm: the embedding scales and shifts the second norm; otherwise it is added before it.
        resample: `doubled`, `halved` or nothing: the block then also changes the size, on both branches.
        use_checkpoint: recompute activations in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        emb_channels: int,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = True,
        resample: Resample | None = None,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.use_checkpoint = use_checkpoint
        self.resample = resample
        self.in_layers = nn.Sequential(Norm(channels), nn.SiLU(), Convolution(channels, out_channels))
        emb_out = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, emb_out))
        last = zeroed(Convolution(out_channels, out_channels))
        self.out_layers = nn.Sequential(Norm(out_channels), nn.SiLU(), nn.Dropout(dropout), last)
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else Pointwise(channels, out_channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, H, W) and the embedding (1 or B, E) to (B, out_channels, H', W')."""
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._forward, x, emb, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return self._forward(x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = silu(self.in_layers[0](x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.in_layers[2](h)
        steering = self.emb_layers(emb)
        norm, _, dropout, conv = self.out_layers
        h = norm(h, steering) if self.use_scale_shift_norm else norm(h + steering.to(h)[:, :, None, None])
        return self.skip_connection(x) + conv(dropout(silu(h)))


class AttentionBlock(nn.Module):
    """Self-attention over all pixels with a residual around it.

    Args:
        channels: C.
        num_heads: heads that share C.
        use_new_attention_order: how the 3C channels of `qkv` divide: all queries, keys, values, each into
            heads; otherwise into heads first, the older order.
        use_checkpoint: recompute activations in the backward pass instead of keeping them.
    """

    def __init__(
        self, channels: int, *, num_heads: int, use_new_attention_order: bool, use_checkpoint: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.use_new_attention_order = use_new_attention_order
        self.use_checkpoint = use_checkpoint
        self.norm = Norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) to the same shape."""
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rows = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C), no copy in channels_last
        qkv = _pointwise(rows, self.qkv)
        if self.use_new_attention_order:
            qkv = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            qkv = qkv.unflatten(2, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        queries, keys, values = qkv
        attended = F.scaled_dot_product_attention(queries, keys, values)  # (B, heads, HW, C / heads)
        rows = _pointwise(attended.transpose(1, 2).flatten(2), self.proj_out)
        return x + rows.transpose(1, 2).reshape(batch, channels, height, width)


def _pointwise(rows: Tensor, conv: nn.Module) -> Tensor:
    assert isinstance(conv, nn.Conv1d)
    return F.linear(rows, conv.weight[:, :, 0], conv.bias)


class Stage(nn.Sequential):
    """Layers in sequence, of which the residual blocks also receive the timestep embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (B, C, H, W) and the embedding (1 or B, E) to (B, C', H', W')."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x
