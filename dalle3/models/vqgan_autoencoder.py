"""The convolutional autoencoder of VQGAN, from "Taming Transformers" (arXiv:2012.09841).

Modules are named as in taming-transformers, so its checkpoints load without renaming.

Shapes: B batch, C channels, H W picture in pixels, h w grid of codes (H / factor, W / factor), Z latent channels,
D codebook width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from dalle3.config import option
from dalle3.errors import ConfigError
from diffusion.convolution import Convolution

NORM_GROUPS = 32


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """What VQGAN and GumbelVQ have in common; taming's `ddconfig`, `embed_dim` and `n_embed` (here `num_tokens`)."""

    num_tokens: int = option(1024, help="entries of the codebook")
    embed_dim: int = option(256, help="width of a codebook entry")
    z_channels: int = option(256, help="channels the encoder gives and the decoder takes")
    resolution: int = option(256, help="side in pixels of the pictures it is made for")
    in_channels: int = option(3, help="channels of the pictures read")
    out_ch: int = option(3, help="channels of the pictures drawn")
    ch: int = option(128, help="channels at full resolution, a multiple of 32")
    ch_mult: tuple[int, ...] = option(
        (1, 1, 2, 2, 4), help="channels of each level over `ch`; each level halves the side"
    )
    num_res_blocks: int = option(2, help="residual blocks of a level")
    attn_resolutions: tuple[int, ...] = option((16,), help="sides at which the levels attend, at `resolution`")
    resamp_with_conv: bool = option(True, help="resample between levels with a convolution")
    dropout: float = option(0.0, help="dropout in the residual blocks while training")

    def __post_init__(self) -> None:
        """Raises ConfigError for what no network can be built from."""
        if self.in_channels != 3 or self.out_ch != 3:
            raise ConfigError(
                f"in_channels is {self.in_channels} and out_ch is {self.out_ch}; an image tokenizer reads and draws "
                "pictures of 3 channels (is this a model of segmentation maps?)"
            )
        if not self.ch_mult or min(self.ch_mult) < 1 or self.ch % NORM_GROUPS:
            raise ConfigError(
                f"ch is {self.ch} and ch_mult is {self.ch_mult}; ch must be a multiple of {NORM_GROUPS} "
                "and ch_mult a list of positive numbers"
            )
        if self.num_res_blocks < 1:
            raise ConfigError(f"num_res_blocks is {self.num_res_blocks}; it must be at least 1")
        if self.resolution % self.factor:
            raise ConfigError(
                f"resolution is {self.resolution}; {len(self.ch_mult)} levels need a multiple of {self.factor}"
            )

    @property
    def factor(self) -> int:
        """Pixels per code along a side: every level but the last halves it, wherever the levels attend."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def widths(self) -> list[int]:
        """The channels of the levels, from full resolution down."""
        return [self.ch * mult for mult in self.ch_mult]

    def attends(self, level: int) -> bool:
        """Whether the blocks of `level` attend; level 0 is full resolution."""
        return self.resolution // 2**level in self.attn_resolutions


def to_signed(images: Tensor) -> Tensor:
    """Pictures in [0, 1] on the scale the network works on, [-1, 1]."""
    return 2 * images - 1


def to_unit(images: Tensor) -> Tensor:
    """Pictures on the network's scale, clamped to it and brought to [0, 1]."""
    return (images.clamp(-1, 1) + 1) / 2


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, *, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = Convolution(in_channels, out_channels)
        self.norm2 = _norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Convolution(out_channels, out_channels)
        self.nin_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W)."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        return self.nin_shortcut(x) + y


class AttnBlock(nn.Module):
    """Self-attention of one head over all pixels, beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        y = self.norm(x)
        q, k, v = (conv(y).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)  # (B, 1, H * W, C)
        return x + self.proj_out(y.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention if `attend`."""

    def __init__(self, widths: tuple[int, int], depth: int, *, attend: bool, dropout: float) -> None:
        super().__init__()
        before, after = widths
        ins = [before] + [after] * (depth - 1)
        self.block = nn.ModuleList(ResnetBlock(width, after, dropout=dropout) for width in ins)
        self.attn = nn.ModuleList(AttnBlock(after) for _ in range(depth if attend else 0))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H, W), or half or twice the side."""
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return self.upsample(self.downsample(x))


class Middle(nn.Module):
    """The blocks at the resolution of the codes."""

    def __init__(self, channels: int, *, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout=dropout)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Halves the side with a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H / 2, W / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and below only, as the published weights expect


class Upsample(nn.Module):
    """Doubles the side by repeating pixels, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Module):
    """Pictures to latents."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, dropout = config.widths, config.dropout
        self.conv_in = Convolution(config.in_channels, config.ch)
        self.down = nn.ModuleList(
            Level(pair, config.num_res_blocks, attend=config.attends(level), dropout=dropout)
            for level, pair in enumerate(pairwise([config.ch, *widths]))
        )
        for level, width in zip(self.down[:-1], widths[:-1], strict=True):
            level.downsample = Downsample(width) if config.resamp_with_conv else nn.AvgPool2d(2)
        self.mid = Middle(widths[-1], dropout=dropout)
        self.norm_out = _norm(widths[-1])
        self.conv_out = Convolution(widths[-1], config.z_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Latents (B, Z, h, w) of pictures (B, 3, H, W) in [-1, 1]."""
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, dropout = config.widths, config.dropout
        self.conv_in = Convolution(config.z_channels, widths[-1])
        self.mid = Middle(widths[-1], dropout=dropout)
        self.up = nn.ModuleList(
            Level((before, after), config.num_res_blocks + 1, attend=config.attends(level), dropout=dropout)
            for level, (after, before) in enumerate(pairwise([*widths, widths[-1]]))
        )
        for level, width in zip(self.up[1:], widths[1:], strict=True):
            level.upsample = Upsample(width) if config.resamp_with_conv else nn.Upsample(scale_factor=2.0)
        self.norm_out = _norm(widths[0])
        self.conv_out = Convolution(widths[0], config.out_ch)

    def forward(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), near [-1, 1], of latents (B, Z, h, w)."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)
