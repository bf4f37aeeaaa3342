"""The diffusion decoder and the upsampler as models of ours: a UNet together with the process it was trained under.

The networks are those of `diffusion`; what is added is that their configuration also says how to sample from them, so
that a folder needs no flags, and what a decoder is told of codes.

Shapes: B pictures, h w grid of codes, D width of the codebook, s side of the picture that the codes make.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle3.config import option
from dalle3.errors import ConfigError
from dalle3.models.image_tokenizer import ImageTokenizer
from diffusion.process import Process, ProcessConfig
from diffusion.rough import Around, around
from diffusion.schedule import PIXEL_STD, REFERENCE_STEPS
from diffusion.unet import SuperResUNet, UNet, UNetConfig, stretch

SamplerName = Literal["dpmpp_2m", "dpmpp_2m_sde", "ddim", "heun", "ddpm"]
DEFAULT_RESPACING: str = "angle25"
Conditions = dict[str, Tensor]  # what a network is told beside the noisy picture, by the names of its arguments


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A diffusion decoder: codes, embedded by their image tokenizer, to pictures."""

    unet: UNetConfig = option(help="the network")
    process: ProcessConfig = option(help="how it was trained")
    respacing: str = option(
        DEFAULT_RESPACING, help="the steps it takes where none are asked for, as diffusion.schedule"
    )
    sampler: SamplerName = option("dpmpp_2m", help="the sampler it is walked with where none is asked for")
    guidance_scale: float = option(1.0, help="classifier-free guidance on the codes where none is asked for")
    spread: float | None = option(
        None,
        help="with low_res: how far pictures are from those that their codes make, as a deviation in -1..1; only what "
        "those lack is learnt then (default: everything is)",
    )

    def __post_init__(self) -> None:
        """Raises ConfigError for steps or a guidance that cannot be, or a spread around a picture it does not see."""
        self.chain()
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise ConfigError(f"guidance_scale is {self.guidance_scale}; it must be a number from 0 on")
        if self.guidance_scale != 1 and not self.unet.null_embedding:
            raise ConfigError(
                f"guidance_scale is {self.guidance_scale}, and this decoder was trained without a null embedding: "
                "nothing tells it what no codes are; leave it at 1, or steer with clip_guidance"
            )
        if self.spread is None:
            return
        if not 0 < self.spread < 1:
            raise ConfigError(f"spread is {self.spread}; it must be above 0 and below 1")
        if not self.unet.low_res or self.process.prediction != "v":
            raise ConfigError(
                f"spread is {self.spread}, which counts predictions from the picture of the codes; pass --low_res and "
                "--prediction v too"
            )

    @property
    def data_std(self) -> float:
        """How far pixels are from what it knows of them before it starts, as a deviation in -1..1."""
        return self.spread or PIXEL_STD

    def chain(self) -> Process:
        """The chain of the steps it takes."""
        return Process(self.process, self.respacing, data_std=self.data_std)

    @property
    def pixels_per_code(self) -> int:
        """Pixels along a side that one code becomes: 16 in the 256 layout."""
        return 2 ** (len(self.unet.widths) - 1) // 2

    @property
    def image_grid(self) -> int:
        """Codes along a side of the pictures it was trained on."""
        return self.unet.image_size // self.pixels_per_code


@dataclass(frozen=True, kw_only=True)
class UpsamplerConfig(DecoderConfig):
    """An upsampler: pictures to larger ones."""

    small_size: int = option(64, help="pixels a side of the pictures it was trained to enlarge to unet.image_size")

    def __post_init__(self) -> None:
        """Raises ConfigError unless the sizes make a whole factor."""
        super().__post_init__()
        if self.small_size < 1 or self.unet.image_size % self.small_size:
            raise ConfigError(
                f"small_size is {self.small_size} and image_size {self.unet.image_size}; the second must be a multiple"
            )

    @property
    def scale(self) -> int:
        """How many times larger its pictures become: 4."""
        return self.unet.image_size // self.small_size


class DiffusionDecoder(UNet):
    """A UNet that knows its process, and what it is told of codes."""

    alphas_cumprod: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config.unet)
        self.settings = config
        self.register_buffer("alphas_cumprod", Process(config.process).alphas_cumprod.float(), persistent=False)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        *,
        low_res: Tensor | None = None,
        embeddings: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """As `UNet.forward`; with a spread, the network sees and corrects what `diffusion.rough.around` knows of x."""
        if self.settings.spread is None or low_res is None:
            return super().forward(x, timesteps, low_res=low_res, embeddings=embeddings, labels=labels)
        known = self._around(x, low_res, timesteps)
        output = super().forward(known.seen, timesteps, low_res=low_res, embeddings=embeddings, labels=labels)
        correction, *variance = output.split(x.shape[1], dim=1)
        return torch.cat([known.v + known.scale * correction, *variance], dim=1)

    def scale(self, x: Tensor, low_res: Tensor, timesteps: Tensor) -> Tensor:
        """What the network's own output is multiplied with (B, 1, 1, 1): the part of v that is left to learn.

        Args:
            x: (B, C, H, W), noisy.
            low_res: (B, C, h, w).
            timesteps: (B,) or (1,), as the network is told them.
        """
        return self._around(x, low_res, timesteps).scale

    def _around(self, x: Tensor, low_res: Tensor, timesteps: Tensor) -> Around:
        process, spread = self.settings.process, self.settings.spread
        assert spread is not None, "who asks has one"
        if process.rescale_timesteps:
            timesteps = timesteps * (process.diffusion_steps / REFERENCE_STEPS)
        alphas_cumprod = self.alphas_cumprod[timesteps.round().long()].reshape(-1, 1, 1, 1)
        # A picture of zeros stands for none (`withheld`): then all that is known is the range.
        known = low_res.flatten(1).any(dim=1).float()[:, None, None, None]
        rough = stretch(low_res.to(x), x.shape[2], x.shape[3])
        return around(x, rough, alphas_cumprod=alphas_cumprod, spread=1 + (spread - 1) * known)

    def conditions(self, codec: ImageTokenizer, codes: Tensor) -> Conditions:
        """What it is told of codes (B, h, w): their embeddings and, where it sees one, the picture they make.

        That picture is the image tokenizer's own, in -1..1, bicubically stretched to the decoder's size. So the
        network need not squeeze a whole picture through its bottleneck: it starts from one, as SR3 (arXiv:2104.07636).

        Args:
            codec: the image tokenizer of the codes.
            codes: (B, h, w).
        """
        told = {"embeddings": codec.embed(codes).float()}
        if self.config.low_res:
            told["low_res"] = enlarged(codec, codes, self.settings.pixels_per_code) * 2 - 1
        return told

    def withheld(self, conditions: Conditions, where: Tensor) -> Conditions:
        """The conditions (B, ...), at the places where `where` (B,) is true replaced by what stands for none.

        Raises:
            ShapeError: the network was trained without a null embedding.
        """
        hidden = where[:, None, None, None]
        nothing = {"embeddings": self.null_embeddings, "low_res": torch.zeros_like}
        return {name: torch.where(hidden, nothing[name](told), told) for name, told in conditions.items()}


def enlarged(codec: ImageTokenizer, codes: Tensor, pixels_per_code: int) -> Tensor:
    """The image tokenizer's pictures (B, 3, S, S) in [0, 1] of codes (B, h, w), stretched: S = h * pixels_per_code."""
    pictures, size = codec.decode(codes), [side * pixels_per_code for side in codes.shape[1:]]
    if list(pictures.shape[2:]) == size:
        return pictures
    return F.interpolate(pictures, size, mode="bicubic", antialias=True).clamp(0, 1)


class Upsampler(SuperResUNet):
    """A SuperResUNet that knows its process."""

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__(config.unet)
        self.settings = config
