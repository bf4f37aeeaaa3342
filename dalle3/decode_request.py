"""What the second stage is asked for; every field is a flag of `decode.py`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dalle3.config import option
from dalle3.errors import ConfigError
from dalle3.models.decoder import DecoderConfig, SamplerName
from dalle3.stages import FULL, respaced
from dalle3.steering import split_prompts


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """How codes become pictures. Flags that sample.py, super_res.py and ru.py of DALL-3 have keep their meaning."""

    steps: int | None = option(None, help="steps of the diffusion (default: as the decoder says, mostly 25)")
    sampler: SamplerName | None = option(None, help="(default: as the decoder says, mostly dpmpp_2m); DALL-3's is ddpm")
    timestep_respacing: str | None = option(
        None, help='which steps, in place of --steps: "25" evenly, "10,10,5", "ddim25", "angle25"'
    )
    guidance_scale: float | None = option(
        None,
        help="above 1 the codes pull harder; for decoders trained with a null embedding (default: as the decoder says, "
        "mostly 1)",
    )
    clip_guidance: bool = option(False, help="let a CLIP steer towards --text and --image_prompts")
    clip_guidance_scale: float = option(1000.0, help="how hard CLIP steers")
    cutn: int | None = option(
        None,
        help="random cutouts of the picture that CLIP looks at in each step (default: 8, and 16 in the exact form)",
    )
    tv_scale: float = option(0.0, help="smoothness of the picture")
    range_scale: float = option(0.0, help="how hard colours are kept in range")
    guidance: Literal["fast", "exact"] = option(
        "fast",
        help="CLIP's gradient: around the network, or through it as in DALL-3's sample.py, at three times the time",
    )
    guidance_limit: float = option(
        0.2,
        help="how far CLIP may move the picture in one step, of its range -1 to 1; ddpm needs no limit and has none",
    )
    stop_at: int = option(FULL, help="stop after so many thousandths of the steps, which gives an airbrushed look")
    upsample: int | None = option(None, help="enlarge the picture to so many pixels a side with the upsampler")
    tile: int = option(512, help="pixels a side that the upsampler works on at once; larger pictures go in tiles")
    label: int | None = option(None, help="the class, for a network conditioned on classes, as OpenAI's are")
    max_memory: float | None = option(
        None, help="GB for weights and pictures: batches and tiles are made to fit, by measure"
    )

    def __post_init__(self) -> None:
        """Raises ConfigError where a value cannot be."""
        _at_least(self, 1, "steps", "cutn", "stop_at", "upsample", "tile")
        for name in ("guidance_scale", "clip_guidance_scale", "tv_scale", "range_scale"):
            if (value := getattr(self, name)) is not None and (not math.isfinite(value) or value < 0):
                raise ConfigError(f"{name} is {value}; it must be a number from 0 on")
        for name in ("guidance_limit", "max_memory"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0")
        if self.steps is not None and self.timestep_respacing is not None:
            raise ConfigError("steps and timestep_respacing both say which steps are taken; leave one out")

    @property
    def cutouts(self) -> int:
        """Cutouts of a step: sample.py's 16 where its gradient is taken, else half of them, which steer no worse."""
        return self.cutn or (16 if self.guidance == "exact" else 8)

    def settled(self, own: DecoderConfig) -> DecodeSettings:
        """These settings with what they leave open, of a decoder alone, as it says."""
        how = self.over(own)
        respacing = how.respacing if self.steps is None else None
        return dataclasses.replace(
            self, sampler=how.sampler, guidance_scale=how.guidance_scale, timestep_respacing=respacing
        )

    def over(self, own: DecoderConfig) -> DecoderConfig:
        """`own`, how a network says it is sampled from, with what these settings ask for in its place.

        Raises:
            ConfigError: more steps are asked for than there are, or a guidance that the network was not trained for.
        """
        asked: dict[str, Any] = {"sampler": self.sampler, "guidance_scale": self.guidance_scale}
        asked["respacing"] = self.timestep_respacing
        if self.steps is not None:
            full = own.process.diffusion_steps
            asked["respacing"] = respaced(self.steps, sampler=self.sampler or own.sampler, full=full)
        return dataclasses.replace(own, **{name: value for name, value in asked.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class DecodeRequest(DecodeSettings):
    """What to decode to, and how. Its fields are the flags of `decode.py`."""

    text: str | None = option(None, help='prompts for --clip_guidance, with weights: "a red circle:2|a blue star:1"')
    image_prompts: str | None = option(None, help="pictures for --clip_guidance, paths or addresses, in the same form")
    preview_every: int = option(5, help="show the picture so far every so many steps; 0 never")
    num_batches: int = option(1, help="batches of each input")
    batch_size: int = option(1, help="pictures of each input in a batch; a GPU draws so many at once")
    num_images: int | None = option(None, help="pictures of each input (default: num_batches times batch_size)")
    index: int | None = option(None, help="make only the picture of this number, as its recipe tells it")
    seed: int = option(0, help="picture i of an input is a function of the input, the seed and i alone")
    output_size: int | None = option(
        None, help="pixels a side of what pictures become (default: what the decoder was trained at; super_res.py: 512)"
    )

    def __post_init__(self) -> None:
        """Raises ConfigError where a value cannot be, or CLIP is told to steer and not where."""
        super().__post_init__()
        _at_least(self, 1, "num_batches", "batch_size", "num_images", "output_size")
        _at_least(self, 0, "seed", "index", "preview_every")
        if self.clip_guidance and not (split_prompts(self.text) or split_prompts(self.image_prompts)):
            raise ConfigError("clip_guidance steers towards prompts; name them with text or image_prompts")

    @property
    def indices(self) -> Sequence[int]:
        """The numbers of the pictures of each input."""
        return range(self.num_images or self.num_batches * self.batch_size) if self.index is None else (self.index,)


def _at_least(request: DecodeSettings, least: int, *names: str) -> None:
    for name in names:
        if (value := getattr(request, name)) is not None and value < least:
            raise ConfigError(f"{name} is {value}; it must be {least} or more")
