"""Guidance: wrappers that turn a denoiser into another, before a sampler walks with it.

Shapes: B pictures, C channels, H W pixels, N cutouts of a picture, P prompts, E width of an image embedding.
CLIP arrives as a callable on pixels, prompts as its embeddings of them; everything else here is arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.errors import DiffusionError, ShapeError
from diffusion.process import Denoiser, Prediction, Process

# Below this, normalised weights would be a quotient of rounding errors.
LEAST_WEIGHT = 1e-3


class Loss(Protocol):
    """What a picture should have little of: loss(x0, x, t) -> (B,), at the noisy x of step t and the x0 expected."""

    def __call__(self, x0: Tensor, x: Tensor, t: int) -> Tensor: ...


def clipped(denoise: Denoiser) -> Denoiser:
    """The denoiser whose x0 is clipped to -1..1."""

    def wrapped(x: Tensor, t: int) -> Prediction:
        prediction = denoise(x, t)
        return replace(prediction, x0=prediction.x0.clamp(-1, 1))

    return wrapped


def classifier_free(denoise: Denoiser, scale: float) -> Denoiser:
    """The denoiser that goes `scale` times as far from the unconditional prediction as the conditional one does.

    Args:
        denoise: bound to 2B conditions, B true ones and then B null ones; it is called once, on both halves.
        scale: 1 is no guidance, 0 the unconditional prediction.
    From "Classifier-Free Diffusion Guidance" (arXiv:2207.12598).
    """

    def wrapped(x: Tensor, t: int) -> Prediction:
        both = denoise(torch.cat([x, x]), t)
        conditional, unconditional = both.x0.chunk(2)
        x0 = torch.lerp(unconditional, conditional, scale)
        variance = both.variance.chunk(2)[0] if len(both.variance) == 2 * len(x) else both.variance
        return Prediction(x0, variance)

    return wrapped


def exact_gradient(denoise: Denoiser, loss: Loss) -> Denoiser:
    """The denoiser with the gradient that lowers `loss`, taken through the whole network.

    The parameters of the network may be frozen, and better are. From DALL-3's sample.py, which calls the
    network once more for it; here one call serves the prediction and the gradient.

    Args:
        denoise: predicts at (x, t), differentiably: other gradients go around this one, not inside.
        loss: differentiable in x0, and in x if it reads x.
    """

    def wrapped(x: Tensor, t: int) -> Prediction:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            prediction = denoise(x, t)
            (slope,) = torch.autograd.grad(loss(prediction.x0, x, t).sum(), x)
        free = replace(prediction, x0=prediction.x0.detach(), variance=prediction.variance.detach())
        return _guided(free, -slope)

    return wrapped


def fast_gradient(denoise: Denoiser, loss: Loss, *, process: Process, data_std: float = 0.5) -> Denoiser:
    """The denoiser with an approximation of the gradient that lowers `loss`; nothing flows through the network.

    The network's Jacobian dx0/dx is replaced by the number it would be if pixels were independent and normal:
    sqrt(a) s^2 / (a s^2 + 1 - a), with a the signal's power at step t and s their standard deviation.

    Args:
        denoise: predicts at (x, t).
        loss: differentiable in x0, and in x if it reads x.
        process: the chain.
        data_std: s, of pixels in -1..1.
    """

    def wrapped(x: Tensor, t: int) -> Prediction:
        prediction = denoise(x, t)
        with torch.enable_grad():
            x0, x = prediction.x0.detach().requires_grad_(), x.detach().requires_grad_()
            value = loss(x0, x, t).sum()
            through_x0, direct = torch.autograd.grad(value, (x0, x), materialize_grads=True)
        power = process.alphas_cumprod[t].item()
        jacobian = power**0.5 * data_std**2 / (power * data_std**2 + 1 - power)
        return _guided(prediction, -(direct + jacobian * through_x0))

    return wrapped


def bounded(denoise: Denoiser, *, process: Process, limit: float) -> Denoiser:
    """The denoiser with its gradient already spent on x0, no further than `limit`.

    With few steps a guided sample can run away, each step's overshoot feeding the next; this bounds a step.

    Args:
        denoise: a guided one.
        process: the chain.
        limit: the largest root mean square by which a picture's x0 may move, in pixels of -1..1.
    """

    def wrapped(x: Tensor, t: int) -> Prediction:
        prediction = denoise(x, t)
        moved = process.guided_x0(prediction, t) - prediction.x0
        size = moved.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        moved = moved * (limit / size.clamp(min=limit))
        return Prediction(prediction.x0 + moved, prediction.variance)

    return wrapped


class Box(NamedTuple):
    """A square cutout, in pixels."""

    size: int
    left: int
    top: int


@dataclass(frozen=True, kw_only=True)
class Cutouts:
    """Random square cutouts of pictures, averaged down to one size.

    Attributes:
        cutn: N, cutouts of each picture.
        cut_size: pixels a side they come out with.
        cut_pow: 1 draws sizes evenly between `cut_size` and the whole picture; above prefers small ones.
        rngs: CPU generators, one for each picture, or a single one whose cutouts all pictures share.
    """

    cutn: int
    cut_size: int
    rngs: Sequence[torch.Generator]
    cut_pow: float = 1.0

    def __call__(self, pictures: Tensor) -> Tensor:
        """Cutouts (N, B, C, cut_size, cut_size) of pictures (B, C, H, W).

        Raises:
            ShapeError: there are neither as many generators as pictures nor one.
        """
        if len(self.rngs) not in (1, len(pictures)):
            raise ShapeError(
                f"{len(pictures)} pictures need {len(pictures)} generators, or one, found {len(self.rngs)}"
            )
        parts = [
            torch.stack([self._cut(part, box) for box in self.draw(rng, *pictures.shape[2:])])
            for part, rng in zip(pictures.chunk(len(self.rngs)), self.rngs, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def draw(self, rng: torch.Generator, height: int, width: int) -> list[Box]:
        """The next `cutn` boxes within `height` x `width`: three draws each, as DALL-3's sample.py."""
        largest, boxes = min(height, width), []
        smallest = min(largest, self.cut_size)
        for _ in range(self.cutn):
            size = int(torch.rand((), generator=rng) ** self.cut_pow * (largest - smallest) + smallest)
            left = int(torch.randint(0, width - size + 1, (), generator=rng))
            top = int(torch.randint(0, height - size + 1, (), generator=rng))
            boxes.append(Box(size, left, top))
        return boxes

    def _cut(self, pictures: Tensor, box: Box) -> Tensor:
        cutout = pictures[:, :, box.top : box.top + box.size, box.left : box.left + box.size]
        return F.adaptive_avg_pool2d(cutout, self.cut_size)


@dataclass(frozen=True, kw_only=True)
class PromptLoss:
    """How far pictures are from prompts in CLIP's eyes, plus how rough and how far out of range they are.

    CLIP sees a blend of the noisy picture and the one expected, the more of the latter the noisier the step.

    Attributes:
        process: the chain.
        cutouts: makes what CLIP looks at.
        embed_image: pixels (M, C, cut_size, cut_size) in 0..1 to embeddings (M, E), differentiable.
        targets: (P, E), embeddings of the prompts.
        weights: (P,), normalised by `normalised_weights`; negative ones push away.
        clip_guidance_scale: of the distance.
        tv_scale: of `total_variation`.
        range_scale: of `range_excess`.
    From DALL-3's sample.py, after Katherine Crowson's CLIP guided diffusion.
    """

    process: Process
    cutouts: Cutouts
    embed_image: Callable[[Tensor], Tensor]
    targets: Tensor
    weights: Tensor
    clip_guidance_scale: float = 1000.0
    tv_scale: float = 0.0
    range_scale: float = 0.0

    def __call__(self, x0: Tensor, x: Tensor, t: int) -> Tensor:
        """The loss (B,) at step t, of the noisy x and the expected x0, both (B, C, H, W)."""
        share = (1 - self.process.alphas_cumprod[t].item()) ** 0.5
        blend = x0 * share + x * (1 - share)
        loss = self.clip_guidance_scale * self.distances(blend)
        if self.tv_scale:
            loss = loss + self.tv_scale * total_variation(blend)
        if self.range_scale:
            loss = loss + self.range_scale * range_excess(x0)
        return loss

    def distances(self, pictures: Tensor) -> Tensor:
        """The weighted distance (B,) of pictures in -1..1 to the prompts, averaged over cutouts."""
        cutouts = self.cutouts((pictures + 1) / 2)  # (N, B, C, s, s)
        embedded = self.embed_image(cutouts.flatten(0, 1)).unflatten(0, cutouts.shape[:2])
        distances = spherical_distance(embedded[:, :, None], self.targets)  # (N, B, P)
        return (distances * self.weights).sum(dim=2).mean(dim=0)


def normalised_weights(weights: Sequence[float]) -> Tensor:
    """The weights (P,) divided by the magnitude of their sum.

    Raises:
        DiffusionError: they sum to zero, so that there is nothing to move towards.
    """
    values = torch.tensor(list(weights), dtype=torch.float32)
    if (total := values.sum().abs()) < LEAST_WEIGHT:
        raise DiffusionError(f"the weights of the prompts sum to zero ({list(weights)}); change one of them")
    return values / total


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """Half the square of the angle between vectors along the last dimension, 0 to pi^2 / 2."""
    chord = (F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).norm(dim=-1)
    return 2 * (chord / 2).arcsin() ** 2


def total_variation(pictures: Tensor) -> Tensor:
    """The mean squared difference (B,) of neighbouring pixels, across plus down."""
    padded = F.pad(pictures, (0, 1, 0, 1), mode="replicate")
    across = padded[..., :-1, 1:] - padded[..., :-1, :-1]
    down = padded[..., 1:, :-1] - padded[..., :-1, :-1]
    return (across**2 + down**2).mean(dim=(1, 2, 3))


def range_excess(pictures: Tensor) -> Tensor:
    """The mean square (B,) of what lies beyond -1..1."""
    return (pictures - pictures.clamp(-1, 1)).square().mean(dim=(1, 2, 3))


def _guided(prediction: Prediction, gradient: Tensor) -> Prediction:
    if prediction.gradient is not None:
        gradient = gradient + prediction.gradient
    return replace(prediction, gradient=gradient)
