"""The UNet of guided-diffusion, its upsampling variant, and DALL-3's conditioning on a map of embeddings.

Shapes: B pictures, C channels, H W pixels, D channels of the embedding map, E width of the timestep embedding.
Fully convolutional: H and W may be any multiple of `UNet.stride`, and the embedding map is then twice the size of
the bottleneck: (B, D, 2H / stride, 2W / stride). 16x16 codes make 256 pixels in the 256 layout, 32x32 make 512.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.convolution import Convolution
from diffusion.errors import ConfigError, ShapeError
from diffusion.unet_blocks import (
    GROUPS,
    AttentionBlock,
    Downsample,
    Norm,
    Resample,
    ResBlock,
    Stage,
    Upsample,
    doubled,
    halved,
    silu,
    timestep_embedding,
    zeroed,
)

CHANNEL_MULTS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The shape of a UNet, in the names of guided-diffusion's flags.

    Attributes:
        image_size: pixels a side it is trained at; places the attention, and picks `channel_mult` where empty.
        in_channels: of a picture.
        num_channels: width of the first level that `channel_mult` multiplies.
        channel_mult: width of each level; every level but the last halves the size.
        num_res_blocks: of each level, on the way down; one more on the way up.
        attention_resolutions: sizes, at `image_size`, of the levels with attention.
        num_heads: of attention, unless `num_head_channels` says how wide a head is.
        num_head_channels: width of a head.
        num_classes: classes it is conditioned on, or none.
        dropout: in the residual blocks.
        use_scale_shift_norm: the timestep scales and shifts norms, rather than being added.
        resblock_updown: residual blocks change the size, rather than plain convolutions.
        use_new_attention_order: see `AttentionBlock`.
        learn_sigma: C more output channels, for the variance.
        emb_input_dims: D of the embedding map it is conditioned on, or none.
        emb_output_dims: channels that map adds to the bottleneck.
        null_embedding: whether it has a learned vector in place of an absent map, for classifier-free guidance.
        low_res: it also sees a rough or smaller version of the picture, stretched, beside its noisy input.
        use_checkpoint: recompute activations in the backward pass: slower, in far less memory.
    """

    image_size: int = 64
    in_channels: int = 3
    num_channels: int = 128
    channel_mult: tuple[float, ...] = ()
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    num_heads: int = 4
    num_head_channels: int | None = None
    num_classes: int | None = None
    dropout: float = 0.0
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = True
    emb_input_dims: int | None = None
    emb_output_dims: int = 512
    null_embedding: bool = False
    low_res: bool = False
    use_checkpoint: bool = False

    def __post_init__(self) -> None:
        if not self.channel_mult and self.image_size not in CHANNEL_MULTS:
            sizes = ", ".join(map(str, sorted(CHANNEL_MULTS)))
            raise ConfigError(f"image_size {self.image_size} has no usual layout ({sizes} have); give channel_mult")
        if self.null_embedding and self.emb_input_dims is None:
            raise ConfigError("null_embedding stands for an absent embedding map; set emb_input_dims too")
        bottleneck = self.widths[-1] + (self.emb_output_dims if self.emb_input_dims else 0)
        if uneven := sorted({width for width in (*self.widths, bottleneck) if width % GROUPS}):
            raise ConfigError(f"every level's width must be a multiple of {GROUPS}, found {uneven}")
        attended = [width for level, width in enumerate(self.widths) if self.attends(level)]
        if uneven := sorted(
            {width for width in (*attended, bottleneck) if width % (self.num_head_channels or self.num_heads)}
        ):
            raise ConfigError(f"attention heads must divide the width of their level, found {uneven}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the largest size first."""
        return tuple(int(mult * self.num_channels) for mult in self.channel_mult or CHANNEL_MULTS[self.image_size])

    @property
    def input_channels(self) -> int:
        """Channels of the first convolution: of the noisy picture, and of the second one that it may see."""
        return 2 * self.in_channels if self.low_res else self.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return 2 * self.in_channels if self.learn_sigma else self.in_channels

    def attends(self, level: int) -> bool:
        """Whether the level whose pictures are `image_size / 2**level` has attention."""
        return 2**level in {self.image_size // size for size in self.attention_resolutions}

    def heads(self, channels: int) -> int:
        """Attention heads at a width of `channels`."""
        return channels // self.num_head_channels if self.num_head_channels else self.num_heads


class UNet(nn.Module):
    """Predicts, from noisy pictures and timesteps, what its process was trained to predict.

    From "Diffusion Models Beat GANs on Image Synthesis", section 3 (arXiv:2105.05233).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        emb_channels = 4 * config.num_channels
        self.time_embed = nn.Sequential(
            nn.Linear(config.num_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, emb_channels)
        self.input_blocks, skips = self._make_input_blocks()
        self._make_middle(config.widths[-1])
        self.output_blocks = self._make_output_blocks(skips)
        last = zeroed(Convolution(config.widths[0], config.out_channels))
        self.out = nn.Sequential(Norm(config.widths[0]), nn.SiLU(), last)

    @property
    def dtype(self) -> torch.dtype:
        """What the convolutions compute in."""
        return next(self.input_blocks.parameters()).dtype

    @property
    def stride(self) -> int:
        """What H and W must be multiples of: 32 in the 256 layout."""
        return 2 ** (len(self.config.widths) - 1)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        *,
        low_res: Tensor | None = None,
        embeddings: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """The prediction (B, C or 2C, H, W), float32, at noisy pictures x (B, C, H, W).

        Args:
            x: standard normal at the highest noise, pixels in -1..1 at none.
            timesteps: (B,), or (1,) for all, as trained (see `Process.model_timesteps`); may be fractional.
            low_res: (B, C, h, w), clean, in -1..1, for a network that sees one; at H x W it is as stretched.
            embeddings: (B, D, 2H / stride, 2W / stride), for a network conditioned on an embedding map.
            labels: (B,), for a class-conditional one.
        Raises:
            ShapeError: a size does not fit, or a condition is missing or not taken.
        """
        self._check(x, low_res, embeddings, labels)
        emb = self.time_embed(timestep_embedding(timesteps, self.config.num_channels))
        if labels is not None:
            emb = emb + self.label_emb(labels)
        h = x if low_res is None else torch.cat([x, stretch(low_res.to(x), x.shape[2], x.shape[3])], dim=1)
        h = h.to(self.dtype)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self._middle(h, emb, embeddings)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        norm, _, last = self.out
        return last(silu(norm(h.float())))

    def null_embeddings(self, like: Tensor) -> Tensor:
        """The map (B, D, h, w) that stands for no condition, of the shape of `like`.

        Raises:
            ShapeError: the network was trained without one.
        """
        if not self.config.null_embedding:
            raise ShapeError("this network has no null embedding: it was trained without dropping its condition")
        return self.null_embedding.to(like).expand_as(like)

    def cast(self, dtype: torch.dtype) -> UNet:
        """Itself, its convolutions in `dtype`; norms, embeddings and the output layer stay float32."""
        for name in ("input_blocks", "middle_block", "middle_block_cond", "external_block", "output_blocks"):
            for module in getattr(self, name, nn.Module()).modules():
                if isinstance(module, (nn.Conv1d, nn.Conv2d)):
                    module.to(dtype)
        return self

    def _make_input_blocks(self) -> tuple[nn.ModuleList, list[int]]:
        config, width = self.config, self.config.widths[0]
        blocks = [Stage(Convolution(config.input_channels, width))]
        skips = [width]
        for level, next_width in enumerate(config.widths):
            for _ in range(config.num_res_blocks):
                blocks.append(self._stage(width, next_width, level))
                width = next_width
                skips.append(width)
            if level < len(config.widths) - 1:
                shrink = self._res_block(width, width, halved) if config.resblock_updown else Downsample(width, width)
                blocks.append(Stage(shrink))
                skips.append(width)
        return nn.ModuleList(blocks), skips

    def _make_middle(self, width: int) -> None:
        config = self.config
        if config.emb_input_dims is None:
            self.middle_block = self._bottleneck(width, width)
            return
        self.external_block = Downsample(config.emb_input_dims, config.emb_output_dims)
        self.middle_block_cond = self._bottleneck(width + config.emb_output_dims, width)
        if config.null_embedding:
            self.null_embedding = nn.Parameter(torch.zeros(config.emb_input_dims, 1, 1))

    def _make_output_blocks(self, skips: list[int]) -> nn.ModuleList:
        config, width, blocks = self.config, self.config.widths[-1], []
        for level, next_width in reversed(list(enumerate(config.widths))):
            for index in range(config.num_res_blocks + 1):
                stage = self._stage(width + skips.pop(), next_width, level)
                width = next_width
                if level > 0 and index == config.num_res_blocks:
                    stage.append(self._res_block(width, width, doubled) if config.resblock_updown else Upsample(width))
                blocks.append(stage)
        return nn.ModuleList(blocks)

    def _stage(self, width: int, next_width: int, level: int) -> Stage:
        stage = Stage(self._res_block(width, next_width))
        if self.config.attends(level):
            stage.append(self._attention(next_width))
        return stage

    def _bottleneck(self, width: int, next_width: int) -> Stage:
        return Stage(self._res_block(width, width), self._attention(width), self._res_block(width, next_width))

    def _res_block(self, width: int, next_width: int, resample: Resample | None = None) -> ResBlock:
        config = self.config
        return ResBlock(
            width,
            next_width,
            emb_channels=4 * config.num_channels,
            dropout=config.dropout,
            use_scale_shift_norm=config.use_scale_shift_norm,
            resample=resample,
            use_checkpoint=config.use_checkpoint,
        )

    def _attention(self, width: int) -> AttentionBlock:
        config = self.config
        return AttentionBlock(
            width,
            num_heads=config.heads(width),
            use_new_attention_order=config.use_new_attention_order,
            use_checkpoint=config.use_checkpoint,
        )

    def _middle(self, h: Tensor, emb: Tensor, embeddings: Tensor | None) -> Tensor:
        if embeddings is None:
            return self.middle_block(h, emb)
        condition = self.external_block(embeddings.to(h.dtype))
        return self.middle_block_cond(torch.cat([h, condition], dim=1), emb)

    def _check(self, x: Tensor, low_res: Tensor | None, embeddings: Tensor | None, labels: Tensor | None) -> None:
        config, (height, width) = self.config, x.shape[2:]
        if x.shape[1] != config.in_channels:
            raise ShapeError(f"pictures have {x.shape[1]} channels; this network takes {config.in_channels}")
        if height % self.stride or width % self.stride:
            raise ShapeError(f"{width}x{height} pixels do not fit: both must be multiples of {self.stride}")
        if (labels is None) != (config.num_classes is None):
            raise ShapeError(f"this network has {config.num_classes or 'no'} classes: labels must fit that")
        if (low_res is None) == config.low_res:
            raise ShapeError(f"this network sees {'a' if config.low_res else 'no'} second picture: low_res must fit")
        if (embeddings is None) != (config.emb_input_dims is None):
            raise ShapeError(f"this network takes {'an' if config.emb_input_dims else 'no'} embedding map")
        expected = (len(x), config.emb_input_dims, 2 * height // self.stride, 2 * width // self.stride)
        if embeddings is not None and embeddings.shape != expected:
            raise ShapeError(
                f"the embedding map is {tuple(embeddings.shape)}; pictures of {width}x{height} need {expected}"
            )


class SuperResUNet(UNet):
    """A UNet that always sees a smaller version of the picture, whether its config says so or not."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(replace(config, low_res=True))


def stretch(pictures: Tensor, height: int, width: int) -> Tensor:
    """Pictures (B, C, h, w) as (B, C, height, width), bilinearly, as the upsamplers were trained."""
    return F.interpolate(pictures, (height, width), mode="bilinear")
