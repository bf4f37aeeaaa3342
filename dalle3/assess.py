"""Held against data: what the second stage makes of the codes of pictures, and what both make of captions.

Shapes: B pictures of a batch, N prompts of a data set, C prompts drawn at once, K pictures of each, L caption tokens,
h w grid of codes, S side of a picture, E width of CLIP's space.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dalle3.checkpoint import read_safetensors
from dalle3.config import option, to_dict
from dalle3.data.transforms import to_tensor
from dalle3.decode import Job, PictureDecoder
from dalle3.decode import run as decode
from dalle3.decode_request import DecodeRequest, DecodeSettings
from dalle3.errors import ConfigError
from dalle3.evaluate.closeness import Closeness
from dalle3.evaluate.examples import Examples
from dalle3.evaluate.frechet import frechet_distance
from dalle3.evaluate.judge import Judge, Retrieval, best_of, mean_cosine
from dalle3.evaluate.report import Row
from dalle3.files import whole_file
from dalle3.models.decoder import enlarged
from dalle3.pipeline import Model, Result
from dalle3.sampling import Recommended, SamplingChoice
from dalle3.tokenizers.base import tokenize
from dalle3.train.tasks.diffusion import shrink

PROMPTS_AT_ONCE = 16  # whose drawings are kept together
SEEDS = 1_000_000  # apart are the seeds of two evaluations


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """What is drawn of each caption, and how it is judged."""

    cond_scales: tuple[float, ...] = option(
        (), help="guidance scales, each of which is measured (default: the model's own, mostly 1)"
    )
    best_of: tuple[int, ...] = option(
        (), help="of so many pictures CLIP takes the best; each number is measured (default: the model's own, mostly 1)"
    )
    top_p: float | None = option(
        None, help="draw from the likeliest codes that reach this probability (default: the model's own, mostly 0.9)"
    )
    top_k: float | None = option(None, help="as top_k of generate.py (default: the model's own, mostly none)")
    temperature: float | None = option(None, help="above 1 bolder, below 1 safer (default: the model's own, mostly 1)")
    among: int = option(100, help="captions of the data set among which a picture is to find its own")
    batch_size: int = option(16, help="pictures drawn at once")

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers that cannot be."""
        if min(self.best_of, default=1) < 1 or self.among < 2:
            raise ConfigError(
                f"best_of is {self.best_of} and among {self.among}; the first must hold numbers from 1 on, and the "
                "second must be at least 2"
            )

    def settled(self, own: Recommended) -> DrawSettings:
        """These settings with what they leave open as the model's `own`."""
        asked = SamplingChoice(top_p=self.top_p, top_k=self.top_k, temperature=self.temperature)
        found = asked.settled(own)
        scales = self.cond_scales or (found.cond_scale,)
        return dataclasses.replace(
            self,
            cond_scales=scales,
            best_of=self.best_of or (own.best_of or 1,),
            top_p=found.top_p,
            top_k=found.top_k,
            temperature=found.temperature,
        )


class Kept:
    """Tensors that are dear to make, each in a file named after what decides them; without a folder none is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What `make` returned for this key, now or before."""
        if self.folder is None:
            return make()
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        path = self.folder / f"{digest}.safetensors"
        if not path.exists():
            with whole_file(path) as partial:
                save_file({name: tensor.contiguous() for name, tensor in make().items()}, partial)
        return read_safetensors(path)


def measure_decoder(
    decoder: PictureDecoder,
    batches: Iterable[Examples],
    settings: DecodeSettings,
    *,
    judge: Judge | None,
    seed: int,
    kept: Kept,
) -> list[Row]:
    """A row of the image tokenizer's own pictures, enlarged, and one of the decoder's: how near they are to originals.

    Args:
        decoder: the second stage.
        batches: pictures of the decoder's size.
        settings: how it decodes.
        judge: adds the Fréchet distances to the originals and, where every picture has a caption, the mean cosines
            with these, in a third row for the originals too.
        seed: of its noise.
        kept: where decoded pictures are kept.
    """
    names = ("codes, enlarged", "decoded")
    closeness, seen, captions, number = [Closeness() for _ in names], [], [], 0
    for examples in batches:
        codes = codes_of(decoder, examples.pictures)
        redraw = Redrawing(decoder, settings, seed=seed, kept=kept)
        drawn = (rough_pictures(decoder, codes), redraw(codes, examples.captions, first=number))
        for place, pictures in enumerate(drawn):
            closeness[place].add(pictures, examples.pictures)
        if judge is not None:
            seen.append(torch.stack([judge.see(pictures) for pictures in (*drawn, examples.pictures)]))
        captions += examples.captions
        number += len(codes)
    rows: list[Row] = [
        {"pictures": name, "number": number, **found.figures()} for name, found in zip(names, closeness, strict=True)
    ]
    if judge is None or number < 2:
        return rows
    *ours, real = features = torch.cat(seen, dim=1)
    for row, found in zip(rows, ours, strict=True):
        row["frechet"] = frechet_distance(found, real)
    if all(captions):
        rows.append({"pictures": "originals", "number": number})
        text = judge.read(captions)
        for row, found in zip(rows, features, strict=True):
            row["clip_score"] = mean_cosine(found, text)
    return rows


def codes_of(decoder: PictureDecoder, pictures: Tensor) -> Tensor:
    """The codes (B, h, w) of pictures (B, 3, S, S) in [0, 1] of the decoder's size, made as small as they are read."""
    assert decoder.unet is not None
    assert decoder.codec is not None
    times = decoder.unet.settings.pixels_per_code // decoder.codec.factor
    return decoder.codec.encode(shrink(pictures.to(decoder.device), times))


@torch.inference_mode()
def rough_pictures(decoder: PictureDecoder, codes: Tensor) -> Tensor:
    """The image tokenizer's pictures of codes (B, h, w), stretched to the decoder's size, (B, 3, S, S) in [0, 1]."""
    assert decoder.unet is not None
    assert decoder.codec is not None
    return enlarged(decoder.codec, codes.to(decoder.device), decoder.unet.settings.pixels_per_code).cpu()


class Redrawing:
    """The decoder as a function of codes; with guidance by CLIP, each picture is steered to its own caption."""

    def __init__(self, decoder: PictureDecoder, settings: DecodeSettings, *, seed: int, kept: Kept) -> None:
        self.decoder, self.settings, self.seed, self.kept = decoder, settings, seed, kept

    def __call__(self, codes: Tensor, captions: Sequence[str], *, first: int = 0) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] of codes (B, h, w).

        Args:
            first: the number of the first picture: with the seed it decides the noise.
        """
        key = {
            "weights": self.decoder.hashes,
            "settings": to_dict(self.settings),
            "codes": hashlib.sha256(codes.cpu().numpy().tobytes()).hexdigest(),
            "seed": [self.seed, first],
            "captions": list(captions) if self.settings.clip_guidance else None,
        }
        return self.kept.get(key, lambda: {"pixels": self._pixels(codes, captions, first)})["pixels"].float() / 255

    def _pixels(self, codes: Tensor, captions: Sequence[str], first: int) -> Tensor:
        jobs = [Job(name="codes", index=first + place, codes=grid.cpu()) for place, grid in enumerate(codes)]
        if not self.settings.clip_guidance:
            return self._decoded(jobs, None)
        return torch.cat([self._decoded([job], caption) for job, caption in zip(jobs, captions, strict=True)])

    def _decoded(self, jobs: Sequence[Job], caption: str | None) -> Tensor:
        asked = {field.name: getattr(self.settings, field.name) for field in dataclasses.fields(DecodeSettings)}
        request = DecodeRequest(**asked, text=caption, seed=self.seed, batch_size=len(jobs), preview_every=0)
        events = decode(self.decoder, request, jobs)
        found = {event.place: to_tensor(event.picture.image) for event in events if isinstance(event, Result)}
        return torch.stack([found[place] for place in range(len(jobs))])


@dataclass(kw_only=True, eq=False)
class TextToImage:
    """What is measured of a model's drawings: R-precision, CLIP score and Fréchet distance (docs/EVALUATE.md).

    Attributes:
        model: the first stage.
        settings: what is drawn, settled.
        seed: picture k of prompt i is a function of seed, i and k.
        kept: where drawings are kept.
        redraw: the second stage, where it is to be measured too.
        judge: a CLIP that takes no part in drawing; None lets the model's own judge what it chose.
    """

    model: Model
    settings: DrawSettings
    seed: int
    kept: Kept
    redraw: Redrawing | None = None
    judge: Judge | None = None

    @cached_property
    def chooser(self) -> Judge:
        """The model's CLIP, which takes the best of several pictures."""
        return Judge(*self.model.clip)

    @property
    def judging(self) -> Judge:
        """Who gives the figures."""
        return self.judge or self.chooser

    @property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of the weights of both."""
        return {"clip": self.chooser.hash, **({"judge": self.judge.hash} if self.judge else {})}

    def measure(self, batches: Iterable[Examples]) -> list[Row]:
        """A row for the real pictures, with the loss of their codes; then for each guidance and each number of
        candidates one, or two if decoded.

        Without another judge, the best of several is chosen by the CLIP that then judges it, so its R-precision and its
        score are flattered; its Fréchet distance is not.
        """
        captions, real, losses = self._read(batches)
        text = self.judging.read(captions)
        wanted = text if self.judge is None else self.chooser.read(captions)
        retrieval = Retrieval(captions, text, among=self.settings.among, seed=self.seed)

        def row(name: str, seen: Tensor) -> Row:
            found = {"r_precision": retrieval.precision(seen), "clip_score": retrieval.score(seen)}
            return {"pictures": name, "number": len(seen), "among": retrieval.among, **found}

        rows = [{**row("real", real), **losses}]
        for scale in self.settings.cond_scales:
            codes, liked, seen = self.draw(captions, cond_scale=scale)
            for number in self.settings.best_of:
                chosen = torch.arange(len(seen)), best_of(liked, wanted, number)
                how = {"cond_scale": scale, "best_of": number}
                kinds = {"drawn": seen[chosen]}
                if self.redraw is not None:
                    kinds["decoded"] = self.judging.see(self.redraw(codes[chosen], captions))
                for name, features in kinds.items():
                    rows.append({**row(name, features), "frechet": frechet_distance(features, real), **how})
        return rows

    def draw(self, captions: Sequence[str], *, cond_scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (N, K, h, w) of pictures of each caption, and what the model's CLIP and the judge see, (N, K, E)."""
        parts = []
        for first in range(0, len(captions), PROMPTS_AT_ONCE):
            some = captions[first : first + PROMPTS_AT_ONCE]
            key = {
                "weights": self.model.hashes,
                **self.hashes,
                "captions": list(some),
                "seed": [self.seed, first],
                "drawn": [
                    max(self.settings.best_of),
                    cond_scale,
                    self.settings.top_p,
                    self.settings.top_k,
                    self.settings.temperature,
                ],
            }
            parts.append(self.kept.get(key, lambda some=some, first=first: self._draw(some, first, cond_scale)))
        codes, liked = (torch.cat([part[name] for part in parts]) for name in ("codes", "features"))
        return codes, liked, liked if self.judge is None else torch.cat([part["judged"] for part in parts])

    def _draw(self, captions: Sequence[str], first: int, cond_scale: float) -> dict[str, Tensor]:
        codes = self._codes(captions, first, cond_scale)
        images = [(self.model.pixels(some) * 255).round().cpu() / 255 for some in codes]  # as they are when saved
        found = {"codes": codes, "features": torch.stack([self.chooser.see(some) for some in images])}
        if self.judge is not None:
            found["judged"] = torch.stack([self.judge.see(some) for some in images])
        return found

    def _codes(self, captions: Sequence[str], first: int, cond_scale: float) -> Tensor:
        """Codes (N, K, h, w) of pictures of captions, about `batch_size` at once: of one caption, or of several."""
        length = self.model.dalle.config.text_seq_len
        text = tokenize(self.model.tokenizer, list(captions), length, truncate=True)
        together = max(self.settings.batch_size // max(self.settings.best_of), 1)
        starts = range(first, first + len(text), together)
        parts = zip(text.split(together), starts, strict=True)
        return torch.cat([self._codes_together(some, start, cond_scale) for some, start in parts])

    def _codes_together(self, text: Tensor, first: int, cond_scale: float) -> Tensor:
        """Codes (C, K, h, w) of captions (C, L), of which the first is prompt `first`."""
        decoder, size, number = self.model.decoder, self.settings.batch_size, max(self.settings.best_of)
        asked = SamplingChoice(
            top_p=self.settings.top_p,
            top_k=self.settings.top_k,
            temperature=self.settings.temperature,
            cond_scale=cond_scale,
        )
        sampling, prefix = asked.settled(self.model.recommended), decoder.read(text, cond_scale=cond_scale)
        seeds = [self.seed * SEEDS + prompt for prompt in range(first, first + len(text))]
        indices = [range(start, min(start + size, number)) for start in range(0, number, size)]
        drawn = [decoder.draw(prefix, sampling, seed=seeds, indices=some) for some in indices]
        return torch.cat([codes.unflatten(0, (len(text), -1)) for codes in drawn], dim=1)

    def _read(self, batches: Iterable[Examples]) -> tuple[list[str], Tensor, dict[str, float]]:
        captions: list[str] = []
        features, losses = [], []
        for examples in batches:
            captions += examples.captions
            features.append(self.judging.see(examples.pictures))
            losses.append(len(examples.captions) * self.losses(examples))
        loss, uncaptioned = (torch.stack(losses).sum(0) / len(captions)).tolist()
        return captions, torch.cat(features), {"loss": loss, "uncaptioned": uncaptioned}

    @torch.inference_mode()
    def losses(self, examples: Examples) -> Tensor:
        """The DALLE's cross-entropy of pictures' codes, in nats a code: with their captions, and without, (2,)."""
        dalle, device = self.model.dalle, self.model.device
        codes = self.model.codec.encode(examples.pictures.to(device))
        text = tokenize(self.model.tokenizer, list(examples.captions), dalle.config.text_seq_len, truncate=True)
        seen = (text.to(device), torch.zeros_like(text, device=device))
        return torch.stack([dalle.loss(ids, codes)[1]["image"].float().cpu() for ids in seen])
