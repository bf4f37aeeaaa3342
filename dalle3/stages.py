"""The two diffusions a picture passes through: from codes to pixels, and from pixels to more of them.

Shapes: B pictures of a batch, h w grid of codes, S side of a picture in pixels, s side of a picture to be enlarged.
Pixels are in -1..1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle3.errors import ConfigError
from dalle3.models.decoder import DiffusionDecoder, SamplerName, Upsampler
from dalle3.models.image_tokenizer import ImageTokenizer
from dalle3.runtime import generator, peak_bytes
from dalle3.steering import Guide
from diffusion.guidance import classifier_free, clipped
from diffusion.process import Denoiser, Process
from diffusion.samplers import SAMPLERS, Step, per_image_noise
from diffusion.tiles import upsampler

OVERLAP = 64  # pixels that tiles share
FULL = 1000  # what `stop_at` counts in: the steps of DALL-3's sample.py


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """What both have in common.

    Attributes:
        name: of the random numbers it draws.
        process: the chain it walks.
        sampler: how.
        guide: what is put around the denoiser.
        label: the class, for a network conditioned on classes.
        stop_at: the thousandth of the steps after which it stops.
    """

    name: str
    process: Process
    sampler: SamplerName
    guide: Guide
    label: int | None = None
    stop_at: int = FULL

    def walk(self, condition: Tensor, side: int, *, seed: int, indices: Sequence[int]) -> Iterator[Step]:
        """The steps towards pictures (B, 3, S, S); the x of the last one is the result.

        Args:
            condition: what they are made from, (B, ...).
            side: S.
            seed: of everything drawn.
            indices: a number of each picture; with the seed it decides all that is drawn for it.
        """
        noise = per_image_noise([generator(seed, self.name, index) for index in indices])
        blank = torch.empty(len(indices), 3, side, side, device=condition.device)
        x = noise(blank).contiguous(memory_format=torch.channels_last)
        denoise = self.denoiser(condition, side, indices=indices)
        return stopping(SAMPLERS[self.sampler](denoise, x, process=self.process, noise=noise), self.stop_at)

    def denoiser(self, condition: Tensor, side: int, *, indices: Sequence[int]) -> Denoiser:
        """The denoiser of pictures (B, 3, S, S) made from `condition`, guided."""
        guided = self.guide(self.unguided(condition, side), self.process, indices)
        # DALL-3's sample.py clips nothing. In few steps of the other samplers an x0 out of range is never made good.
        return guided if self.sampler == "ddpm" else clipped(guided)

    def unguided(self, condition: Tensor, side: int) -> Denoiser:
        """The denoiser of pictures (B, 3, S, S) made from `condition`."""
        raise NotImplementedError

    def needs(self, condition: Tensor, side: int) -> int:
        """Bytes that one picture takes, measured in one evaluation at the highest noise.

        Args:
            condition: of one picture.
            side: S.
        """
        denoise = self.denoiser(condition, side, indices=[0])
        x = torch.zeros(1, 3, side, side, device=condition.device).contiguous(memory_format=torch.channels_last)

        @torch.no_grad()
        def evaluate() -> None:
            denoise(x, self.process.num_timesteps - 1)

        return peak_bytes(evaluate, condition.device)

    def labels(self, condition: Tensor) -> Tensor | None:
        """The class of each picture (B,), if there are classes."""
        return None if self.label is None else torch.full((len(condition),), self.label, device=condition.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodeStage(Stage):
    """From codes (B, h, w) to pictures.

    Attributes:
        network: the decoder.
        codec: the image tokenizer of the codes.
        guidance_scale: of classifier-free guidance on the codes; 1 is none.
    """

    network: DiffusionDecoder
    codec: ImageTokenizer
    guidance_scale: float = 1.0

    def unguided(self, condition: Tensor, side: int) -> Denoiser:
        """As `Stage.unguided`."""
        del side  # the codes decide it
        network, labels = self.network, self.labels(condition)
        with torch.no_grad():
            told = network.conditions(self.codec, condition)
        if self.guidance_scale == 1:
            return self.process.denoiser(lambda x, t: network(x, t, labels=labels, **told))
        twice = {name: torch.cat([one, one]) for name, one in told.items()}
        where = torch.arange(2 * len(condition), device=condition.device) >= len(condition)
        both = network.withheld(twice, where)
        classes = None if labels is None else labels.repeat(2)
        denoise = self.process.denoiser(lambda x, t: network(x, t, labels=classes, **both))
        return classifier_free(denoise, self.guidance_scale)


@dataclass(frozen=True, kw_only=True, eq=False)
class UpsampleStage(Stage):
    """From pictures (B, 3, s, s) to larger ones, in tiles where they are larger than one.

    Attributes:
        network: the upsampler.
        tile: pixels a side of a tile, a multiple of the network's stride.
        budget: bytes that one picture may take; tiles are made smaller to fit. None is no limit.
    """

    network: Upsampler
    tile: int = 512
    budget: float | None = None
    _fitted: dict[int, int] = field(default_factory=dict, repr=False)

    def unguided(self, condition: Tensor, side: int) -> Denoiser:
        """As `Stage.unguided`."""
        return self._tiled(condition, side, self.tile_at(side))

    def tile_at(self, side: int) -> int:
        """Pixels a side of the tiles of pictures of `side`."""
        return self._fitted.get(side, self.tile)

    def fit(self, condition: Tensor, side: int) -> None:
        """Makes the tiles of pictures of `side` small enough for the budget, by a measure of one picture.

        Raises:
            ConfigError: not even the smallest tile fits.
        """
        if self.budget is None or side in self._fitted:
            return
        tile, least = min(self.tile, side), 2 * self.network.stride
        while (taken := self.needs(condition[:1], side)) > self.budget:
            if tile <= least:
                raise too_little(taken, self.budget, f"enlarging one picture to {side} pixels")
            shrunk = int(tile * math.sqrt(self.budget / taken)) // self.network.stride * self.network.stride
            tile = max(least, min(shrunk, tile - self.network.stride))
            self._fitted[side] = tile

    def low_res(self, pictures: Tensor, side: int) -> Tensor:
        """What is enlarged to `side`: `pictures`, made as small as the upsampler was trained on, by averaging."""
        small = min(side // self.network.settings.scale, pictures.shape[-1])
        return F.interpolate(pictures.clamp(-1, 1), size=(small, small), mode="area")

    def _tiled(self, condition: Tensor, side: int, tile: int) -> Denoiser:
        stride = self.network.stride
        return upsampler(
            self.network,
            condition,
            process=self.process,
            height=side,
            width=side,
            tile=tile,
            overlap=min(OVERLAP, (tile - stride) // 2),
            labels=self.labels(condition),
        )


def stopping(steps: Iterator[Step], stop_at: int) -> Iterator[Step]:
    """`steps`, of which the one at `stop_at` thousandths is the last: its result is the picture expected there."""
    for step in steps:
        if step.done < step.total and step.done * FULL >= stop_at * step.total:
            yield Step(step.total, step.total, step.x0, step.x0)
            return
        yield step


def respaced(steps: int, *, sampler: SamplerName, full: int) -> str:
    """The respacing that takes so many steps of a chain of `full`, as `diffusion.schedule` reads it.

    Raises:
        ConfigError: more steps are asked for than there are.
    """
    if steps > full:
        raise ConfigError(f"steps is {steps}; the chain has {full}")
    if steps == full:
        return ""
    # Ancestral sampling is spaced evenly, as it was trained; to the others the angle is what matters. One step alone
    # would fall on the picture's end of an even spacing, and leave the noise as it is.
    return f"{steps}" if sampler == "ddpm" and steps > 1 else f"angle{steps}"


def too_little(taken: float, budget: float, what: str) -> ConfigError:
    """The error for memory that is not enough for one picture."""
    return ConfigError(
        f"{what} takes {taken / 1e9:.2g} GB, measured, and --max_memory leaves {max(budget, 0) / 1e9:.2g} GB beside "
        "the weights; allow more, or take a smaller --tile or --guidance fast"
    )
