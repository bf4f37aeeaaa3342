"""From codes to full-quality pictures, as a stream of events: the diffusion decoder, guided or not, and the upsampler.

Nothing here prints or writes; the doors do. Shapes: B pictures of a batch, h w grid of codes, S side of a
picture in pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import dalle3
from dalle3.checkpoint import Checkpoint, fingerprint
from dalle3.decode_request import DecodeRequest, DecodeSettings
from dalle3.errors import CodesError, ConfigError
from dalle3.models.decoder import DiffusionDecoder, SamplerName, Upsampler
from dalle3.models.image_tokenizer import ImageTokenizer
from dalle3.output import Picture
from dalle3.pipeline import Progress, Result, Stopped, Tick
from dalle3.rerank import Scorer, Tokenize
from dalle3.runtime import keep_freed_memory
from dalle3.stages import FULL, DecodeStage, Stage, UpsampleStage, too_little
from dalle3.steering import Guide, Steering, read_targets, unguided

GB = 10**9
DEFAULT_UPSAMPLED = 512  # pixels a side, as super_res.py


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A picture to make."""

    name: str  # of what it is made from
    index: int = 0  # which of the pictures made from that
    codes: Tensor | None = None  # (h, w), for a decoder
    picture: Tensor | None = None  # (1, 3, s, s) in [0, 1], where it is only to be enlarged

    @property
    def shape(self) -> torch.Size:
        """Of what it is made from: jobs of one shape can share a batch."""
        source = self.codes if self.codes is not None else self.picture
        assert source is not None
        return source.shape


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A picture as far as it is; while enlarging, the picture so far in full size."""

    place: int  # of its job
    image: Image.Image
    step: int
    steps: int


@dataclass(kw_only=True, eq=False)
class PictureDecoder:
    """Everything codes pass through on their way to pictures: `dalle3.assemble_decoder.load_decoder` returns one."""

    unet: DiffusionDecoder | None  # without one, pictures are only enlarged
    codec: ImageTokenizer | None  # of the codes; there is one where there is a unet
    upsampler: Upsampler | None
    open_clip: Callable[[], tuple[Scorer, Tokenize]]  # called when first a guidance is asked for
    checkpoints: Mapping[str, Checkpoint]  # what the recipes name by hash

    @cached_property
    def clip(self) -> tuple[Scorer, Tokenize]:
        """The CLIP that steers, its weights frozen, and its tokenizer.

        Raises:
            Dalle3Error: there is none, or its file is broken.
        """
        scorer, tokenize = self.open_clip()
        scorer.requires_grad_(False)  # type: ignore[attr-defined]
        return scorer, tokenize

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each part's weights."""
        return {name: fingerprint(checkpoint.state) for name, checkpoint in self.checkpoints.items()}

    def own(self, settings: DecodeSettings) -> dict[str, float]:
        """The guidance that is the decoder's own, by name: `settings` leave it open, and there is one."""
        if self.unet is None or settings.guidance_scale is not None or self.unet.settings.guidance_scale == 1:
            return {}
        return {"guidance_scale": self.unet.settings.guidance_scale}

    @property
    def networks(self) -> list[nn.Module]:
        """All that holds memory, but CLIP where it was not opened yet."""
        parts = [self.unet, self.codec, self.upsampler, self.__dict__.get("clip", (None,))[0]]
        return [part for part in parts if isinstance(part, nn.Module)]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.networks[0].parameters()).device

    def grid(self, side: int | None) -> int:
        """Codes a side of pictures of `side` pixels; of those it was trained on, where that is None.

        Raises:
            ConfigError: no multiple of what the network needs.
        """
        assert self.unet is not None
        side = side or self.unet.config.image_size
        if side % self.unet.stride:
            raise ConfigError(f"output_size is {side}; the decoder draws multiples of {self.unet.stride}")
        return side // self.unet.settings.pixels_per_code

    def side(self, grid: int, *, name: str) -> int:
        """Pixels a side of the pictures of grid x grid codes.

        Args:
            name: of the codes, for the error.
        Raises:
            CodesError: no multiple of what the network needs.
        """
        assert self.unet is not None
        side = grid * self.unet.settings.pixels_per_code
        if side % self.unet.stride:
            raise CodesError(
                f"{name}: {grid}x{grid} codes would make {side} pixels a side, and the decoder draws multiples of "
                f"{self.unet.stride}; give an even number of codes a side"
            )
        return side


def run(
    decoder: PictureDecoder, request: DecodeRequest, jobs: Sequence[Job], *, tick: Tick = lambda done: None
) -> Iterator[Progress | Preview | Result]:
    """Makes the pictures of `jobs`: a Result for each as soon as its batch is done, previews while it runs.

    `Result.place` is the number of the job. A picture depends on its job and the request, never on its company: to
    float rounding on a GPU, to the bit on a CPU.

    Args:
        tick: is called after every step with the pictures done so far; may raise Stopped.
    Raises:
        Dalle3Error: something cannot be; before the first step.
        DiffusionError: as well.
    """
    yield from Decoding(decoder, request, jobs).events(tick=tick)


class Decoding:
    """Jobs checked against a decoder: sizes fit, prompts are read, the steps are known."""

    def __init__(self, decoder: PictureDecoder, request: DecodeRequest, jobs: Sequence[Job]) -> None:
        """Raises Dalle3Error or DiffusionError where something cannot be."""
        self.decoder, self.request, self.jobs = decoder, request, jobs
        self.sides = {job.shape: self._sides(job) for job in jobs}
        self.stages: list[Stage] = [self._decode_stage()] if decoder.unet is not None else []
        if request.upsample or decoder.unet is None:
            self.stages.append(self._upsample_stage())
        if request.label is not None and all(stage.label is None for stage in self.stages):
            raise ConfigError(f"label is {request.label}, and nothing here is conditioned on classes; leave it out")
        self.batches = list(self._batches())

    @property
    def steps(self) -> int:
        """Of all stages together."""
        return sum(stage.process.num_timesteps for stage in self.stages)

    def events(self, *, tick: Tick = lambda done: None) -> Iterator[Progress | Preview | Result]:
        """As `run`."""
        start, done = time.perf_counter(), 0
        if self.decoder.device.type == "cpu":
            keep_freed_memory()
        with contextlib.suppress(Stopped):
            for places in self.batches:
                for step, pixels, steps in self._draw(places):
                    tick(done + len(places) * step / steps)
                    if step == steps:
                        yield from self._results(places, pixels)
                    elif self.request.preview_every and step % self.request.preview_every == 0:
                        for place, image in zip(places, to_images(pixels), strict=True):
                            yield Preview(place=place, image=image, step=step, steps=steps)
                done += len(places)
                yield Progress(done=done, total=len(self.jobs), seconds=time.perf_counter() - start)

    def _draw(self, places: Sequence[int]) -> Iterator[tuple[int, Tensor, int]]:
        """The step, the pixels (B, 3, S, S) in -1..1 as they are there, and the number of steps of all stages."""
        jobs = [self.jobs[place] for place in places]
        pixels, before = None, 0
        for stage, side in zip(self.stages, self.sides[jobs[0].shape], strict=True):
            condition = self._condition(stage, jobs, pixels, side)
            for step in stage.walk(condition, side, seed=self.request.seed, indices=[job.index for job in jobs]):
                finished = step.done == step.total
                pixels = step.x if finished else step.x0
                yield before + step.done, pixels, self.steps
            before += stage.process.num_timesteps

    def _condition(self, stage: Stage, jobs: Sequence[Job], drawn: Tensor | None, side: int) -> Tensor:
        if isinstance(stage, UpsampleStage):
            found = (
                torch.cat([job.picture for job in jobs if job.picture is not None]) * 2 - 1 if drawn is None else drawn
            )
            return stage.low_res(found.to(self.decoder.device), side)
        codes = torch.stack([job.codes for job in jobs if job.codes is not None])
        return codes.to(self.decoder.device)

    def _batches(self) -> Iterator[list[int]]:
        """The numbers of jobs to do together: alike, and no more than memory takes."""
        for shape, group in groupby(range(len(self.jobs)), key=lambda place: self.jobs[place].shape):
            places = list(group)
            size = self._batch_size(self.jobs[places[0]], self.sides[shape])
            yield from (places[start : start + size] for start in range(0, len(places), size))

    def _batch_size(self, job: Job, sides: Sequence[int]) -> int:
        """Pictures to draw at once, by a measure of one where memory is short; makes tiles small enough for one.

        A CPU takes one: more are no faster there, and a picture's rounding is its own.
        """
        size = 1 if self.decoder.device.type == "cpu" else self.request.batch_size
        if (budget := self._budget()) is None:
            return size
        drawn = None
        for stage, side in zip(self.stages, sides, strict=True):
            condition = self._condition(stage, [job], drawn, side)
            drawn = torch.zeros(1, 3, side, side)
            if isinstance(stage, UpsampleStage):
                stage.fit(condition, side)
                size = 1
            elif (taken := stage.needs(condition, side)) > budget:
                raise too_little(taken, budget, f"one picture of {side} pixels")
            else:
                size = min(size, int(budget // taken))
        return size

    def _budget(self) -> float | None:
        """Bytes that are left for pictures beside the weights."""
        if self.request.max_memory is None:
            return None
        held = sum(tensor.nbytes for network in self.decoder.networks for tensor in network.state_dict().values())
        return self.request.max_memory * GB - held

    def _sides(self, job: Job) -> list[int]:
        """Pixels a side after each stage."""
        request, upsampler = self.request, self.decoder.upsampler
        sides = []
        if job.codes is not None:
            grid = len(job.codes)
            sides = [self.decoder.side(grid, name=job.name)]
            if request.output_size not in (None, sides[0]):
                raise ConfigError(
                    f"{job.name} has {grid}x{grid} codes, which make {sides[0]} pixels a side; output_size is "
                    f"{request.output_size}: leave it out, or enlarge with upsample"
                )
        if request.upsample or not sides:
            if upsampler is None:
                raise ConfigError("upsample needs an upsampler; name one with --upsampler")
            sides.append(upscaled_side(upsampler, request))
        return sides

    def _decode_stage(self) -> DecodeStage:
        unet, codec, request = self.decoder.unet, self.decoder.codec, self.request
        assert unet is not None
        assert codec is not None
        how = request.over(unet.settings)
        return DecodeStage(
            name="decode",
            network=unet,
            codec=codec,
            process=how.chain(),
            sampler=how.sampler,
            guide=self._guide(how.sampler),
            label=self._label(unet),
            stop_at=request.stop_at,
            guidance_scale=how.guidance_scale,
        )

    def _upsample_stage(self) -> UpsampleStage:
        network, request, alone = self.decoder.upsampler, self.request, self.decoder.unet is None
        assert network is not None
        how = dataclasses.replace(request, guidance_scale=None).over(network.settings)  # it is told no codes
        return UpsampleStage(
            name="upsample",
            network=network,
            process=how.chain(),
            sampler=how.sampler,
            guide=self._guide(how.sampler) if alone else unguided,
            label=self._label(network),
            stop_at=request.stop_at if alone else FULL,
            tile=max(2 * network.stride, request.tile // network.stride * network.stride),
            budget=self._budget(),
        )

    def _label(self, network: DiffusionDecoder | Upsampler) -> int | None:
        """The class asked for, of a network that has classes."""
        classes, label = network.config.num_classes, self.request.label
        if classes is None:
            return None
        if label is None or not 0 <= label < classes:
            found = "none is given" if label is None else f"label is {label}"
            name = "upsampler" if isinstance(network, Upsampler) else "decoder"
            raise ConfigError(
                f"this {name} is conditioned on {classes} classes, and {found}; say which, from 0: --label"
            )
        return label

    def _guide(self, sampler: SamplerName) -> Guide:
        request = self.request
        if not request.clip_guidance:
            return unguided
        targets = read_targets(
            self.decoder.clip,
            text=request.text,
            image_prompts=request.image_prompts,
            cutn=request.cutouts,
            side=max(sides[0] for sides in self.sides.values()),
            seed=request.seed,
        )
        return Steering(
            clip=self.decoder.clip[0],
            targets=targets,
            exact=request.guidance == "exact",
            limit=None if sampler == "ddpm" else request.guidance_limit,
            cutn=request.cutouts,
            clip_guidance_scale=request.clip_guidance_scale,
            tv_scale=request.tv_scale,
            range_scale=request.range_scale,
            seed=request.seed,
        )

    def _results(self, places: Sequence[int], pixels: Tensor) -> Iterator[Result]:
        for place, image in zip(places, to_images(pixels), strict=True):
            job = self.jobs[place]
            codes = np.zeros((0, 0), np.int64) if job.codes is None else job.codes.cpu().numpy()
            recipe = {**self.recipe, "input": job.name, "index": job.index, "size": list(image.size)}
            if isinstance(last := self.stages[-1], UpsampleStage):
                recipe["tile"] = last.tile_at(image.width)
            picture = Picture(image=image, codes=codes, seed=self.request.seed, index=job.index, recipe=recipe)
            yield Result(place=place, prompt=self.request.text or "", picture=picture)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What all pictures share: with the input and the index, everything needed to make one again."""
        request, first = self.request, self.stages[0]
        asked = {field.name: getattr(request, field.name) for field in dataclasses.fields(DecodeSettings)}
        left_out = ("max_memory", "steps", "tile")
        defaults = DecodeRequest()
        settings = {k: v for k, v in asked.items() if k not in left_out and v != getattr(defaults, k)}
        if isinstance(first, DecodeStage):
            settings["guidance_scale"] = first.guidance_scale
        network = self.decoder.networks[0]
        return {
            "prompt": request.text,
            **({"image_prompts": request.image_prompts} if request.image_prompts else {}),
            "seed": request.seed,
            "settings": {**settings, "sampler": first.sampler, "timesteps": first.process.num_timesteps},
            "dtype": str(network.dtype).removeprefix("torch."),
            "weights": self.decoder.hashes,
            "versions": {"dalle3": dalle3.__version__, "torch": torch.__version__},
        }


def upscaled_side(network: Upsampler, request: DecodeRequest) -> int:
    """Pixels a side that pictures are enlarged to.

    Raises:
        ConfigError: no multiple of what the network needs.
    """
    side = request.upsample or request.output_size or DEFAULT_UPSAMPLED
    if side % network.stride:
        name = "upsample" if request.upsample else "output_size"
        raise ConfigError(f"{name} is {side}; the upsampler draws multiples of {network.stride}")
    return side


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pixels (B, 3, S, S) in -1..1 as pictures."""
    unit = ((pixels.detach().float() + 1) / 2).clamp(0, 1)
    return [Image.fromarray(image) for image in (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()]
