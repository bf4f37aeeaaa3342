"""The diffusion decoder and the upsampler as models of ours: a UNet together with the process it was trained under.

The networks are those of `diffusion`; what is added is that their configuration also says how to sample from them, so
that a folder needs no flags.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dalle3.config import option
from dalle3.errors import ConfigError
from diffusion.process import ProcessConfig
from diffusion.unet import SuperResUNet, UNet, UNetConfig

SamplerName = Literal["dpmpp_2m", "dpmpp_2m_sde", "ddim", "heun", "ddpm"]
DEFAULT_RESPACING: str = "angle25"


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A diffusion decoder: codes, embedded by their image tokenizer, to pictures."""

    unet: UNetConfig = option(help="the network")
    process: ProcessConfig = option(help="how it was trained")
    respacing: str = option(
        DEFAULT_RESPACING, help="the steps it takes where none are asked for, as diffusion.schedule"
    )
    sampler: SamplerName = option("dpmpp_2m", help="the sampler it is walked with where none is asked for")

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
        if self.small_size < 1 or self.unet.image_size % self.small_size:
            raise ConfigError(
                f"small_size is {self.small_size} and image_size {self.unet.image_size}; the second must be a multiple"
            )

    @property
    def scale(self) -> int:
        """How many times larger its pictures become: 4."""
        return self.unet.image_size // self.small_size


class DiffusionDecoder(UNet):
    """A UNet that knows its process."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config.unet)
        self.settings = config


class Upsampler(SuperResUNet):
    """A SuperResUNet that knows its process."""

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__(config.unet)
        self.settings = config
