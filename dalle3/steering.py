"""Steering a diffusion with CLIP: prompts with weights, as targets of a loss.

Shapes: P prompts, E width of CLIP's embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite

import torch
from PIL import Image
from torch import Tensor

from dalle3.data.transforms import to_tensor
from dalle3.inputs import ADDRESSES, read_picture
from dalle3.rerank import Scorer, Tokenize
from dalle3.runtime import generator
from diffusion.guidance import (
    Cutouts,
    PromptLoss,
    bounded,
    exact_gradient,
    fast_gradient,
    normalised_weights,
)
from diffusion.process import Denoiser, Process

Guide = Callable[[Denoiser, Process, Sequence[int]], Denoiser]  # of the pictures of these numbers


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What pictures should come near to, in CLIP's eyes."""

    embeddings: Tensor  # (P, E)
    weights: Tensor  # (P,), normalised


def split_prompts(text: str | None) -> list[tuple[str, float]]:
    """The prompts of "a red circle:2|a blue star" with their weights, 1 where none is given."""
    return [_weighed(part.strip()) for part in (text or "").split("|") if part.strip()]


@torch.no_grad()
def read_targets(
    clip: tuple[Scorer, Tokenize],
    *,
    text: str | None,
    image_prompts: str | None,
    cutn: int,
    side: int,
    seed: int,
) -> Targets:
    """The targets that `text` and `image_prompts` name, in the form of `split_prompts`.

    Args:
        clip: a CLIP and its tokenizer.
        text: what the picture should show.
        image_prompts: paths or addresses of pictures; each is seen through `cutn` random cutouts.
        cutn: see `Cutouts`.
        side: of the pictures that will be drawn, in pixels; larger image prompts are reduced to it.
        seed: of the cutouts.
    Raises:
        DiffusionError: the weights sum to zero.
        ImageError: a picture cannot be read.
    """
    scorer, tokenize = clip
    device = next(scorer.parameters()).device  # type: ignore[attr-defined]
    texts, pictures = split_prompts(text), split_prompts(image_prompts)
    weights = [weight for _, weight in texts]
    weights += [weight / cutn for _, weight in pictures for _ in range(cutn)]
    normalised = normalised_weights(weights)
    embeddings = [scorer.encode_text(tokenize([prompt]).to(device)) for prompt, _ in texts]
    for number, (name, _) in enumerate(pictures):
        picture = _reduced(read_picture(name), side)
        pixels = to_tensor(picture)[None].to(device).float() / 255
        cutouts = Cutouts(cutn=cutn, cut_size=cut_size(scorer), rngs=[generator(seed, "image prompt", number)])
        embeddings.append(scorer.encode_image(cutouts(pixels).flatten(0, 1)))
    return Targets(embeddings=torch.cat(embeddings), weights=normalised.to(device))


@dataclass(frozen=True, kw_only=True)
class Steering:
    """CLIP guidance, once everything about it is known but the picture.

    Attributes:
        clip: what sees the pictures.
        targets: what they should come near to.
        exact: the gradient is taken through the whole network, as in DALL-3's sample.py.
        limit: how far, as a root mean square, one step's x0 may be moved; None moves it as far as it goes.
        cutn: see `Cutouts`.
        clip_guidance_scale: see `PromptLoss`.
        tv_scale: see `PromptLoss`.
        range_scale: see `PromptLoss`.
        seed: of the cutouts.
    """

    clip: Scorer
    targets: Targets
    exact: bool
    limit: float | None
    cutn: int
    clip_guidance_scale: float
    tv_scale: float
    range_scale: float
    seed: int

    def __call__(self, denoise: Denoiser, process: Process, indices: Sequence[int]) -> Denoiser:
        """`denoise`, guided, for the pictures of numbers `indices`, each with cutouts of its own."""
        loss = PromptLoss(
            process=process,
            cutouts=Cutouts(
                cutn=self.cutn,
                cut_size=cut_size(self.clip),
                rngs=[generator(self.seed, "cutouts", index) for index in indices],
            ),
            embed_image=self.clip.encode_image,
            targets=self.targets.embeddings,
            weights=self.targets.weights,
            clip_guidance_scale=self.clip_guidance_scale,
            tv_scale=self.tv_scale,
            range_scale=self.range_scale,
        )
        form = exact_gradient if self.exact else partial(fast_gradient, process=process)
        guided = form(denoise, loss)
        return guided if self.limit is None else bounded(guided, process=process, limit=self.limit)


def unguided(denoise: Denoiser, process: Process, indices: Sequence[int]) -> Denoiser:
    """`denoise` itself: the `Guide` where nobody asks for one."""
    del process, indices
    return denoise


def cut_size(clip: Scorer) -> int:
    """Pixels a side that a CLIP reads."""
    return clip.image_size  # type: ignore[attr-defined]


def _weighed(prompt: str) -> tuple[str, float]:
    text, colon, number = prompt.rpartition(":")
    try:
        weight = float(number)
    except ValueError:
        return prompt, 1.0
    whole = not colon or not text or not isfinite(weight) or f"{text}://" in ADDRESSES
    return (prompt, 1.0) if whole else (text.rstrip(), weight)


def _reduced(picture: Image.Image, side: int) -> Image.Image:
    least = min(picture.size)
    if least <= side:
        return picture
    width, height = (max(side, round(length * side / least)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
