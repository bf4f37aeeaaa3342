"""Training DALLE-pytorch's discrete VAE: reconstruction, and a pull of the codes towards uniform use.

Where the encoder is frozen, codes stay what they are, and the decoder learns to draw the likeliest.

Shapes: B batch, H W picture in pixels, h w grid of codes, V codebook entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle3.checkpoint import Checkpoint
from dalle3.config import option
from dalle3.data.loader import Batch
from dalle3.errors import ConfigError
from dalle3.models.discrete_vae import DiscreteVAE, Distance
from dalle3.runtime import generator
from dalle3.train.codebook import check_width, features, set_codebook, weights_of_codes
from dalle3.train.seeds import on_device
from dalle3.train.task import Metrics, Preview, to_pil, to_unit

ANNEAL_EVERY = 100  # steps between changes of the temperature, as in DALLE-pytorch


@dataclass(frozen=True, kw_only=True)
class VaeTaskConfig:
    """How soft the codes are while a discrete VAE trains, and how far its pictures may be from the originals."""

    l1_loss: bool = option(
        False,
        help="absolute instead of squared error: where a code may stand for several pictures the median of them is "
        "drawn, with crisp edges and even grounds, not their blurred mean",
    )
    starting_temp: float = option(1.0, help="temperature of the Gumbel-softmax at the beginning")
    temp_min: float = option(0.5, help="lowest temperature")
    anneal_rate: float = option(
        1e-6, help="every 100 steps the temperature is multiplied by exp(-anneal_rate * step), as DALLE-pytorch does"
    )
    kmeans_step: int | None = option(
        None, help="until this step there are no codes; then the codebook becomes the k-means of what the encoder sees"
    )

    def __post_init__(self) -> None:
        """Raises ConfigError unless the temperatures are above 0, and k-means comes after a step."""
        if min(self.starting_temp, self.temp_min) <= 0:
            raise ConfigError(f"temperatures are {self.starting_temp} and {self.temp_min}; they must be above 0")
        if self.kmeans_step is not None and self.kmeans_step < 1:
            raise ConfigError(f"kmeans_step is {self.kmeans_step}; it must be at least 1, or left out")

    def temperature(self, step: int) -> float:
        """The temperature at a step, counted from 0: the product of all the factors until then."""
        changes = step // ANNEAL_EVERY
        decay = self.anneal_rate * ANNEAL_EVERY * changes * (changes + 1) / 2
        return max(self.temp_min, self.starting_temp * math.exp(-decay))


class VaeObjective(nn.Module):
    """The loss of a discrete VAE; without codes it is that of an autoencoder, with an encoder at rest its decoder's."""

    def __init__(self, vae: DiscreteVAE, distance: Distance) -> None:
        super().__init__()
        self.vae, self.distance, self.coded = vae, distance, True

    def forward(
        self, images: Tensor, noise: torch.Generator, temperature: float, coded: bool = True
    ) -> tuple[Tensor, Metrics]:
        """The loss on pictures (B, 3, H, W) in [0, 1], and its parts."""
        self.coded = coded
        vae = self.vae
        codes_stay = not any(weights.requires_grad for weights in vae.encoder.parameters())
        if codes_stay or not coded:
            drawn = vae.decode_raw(vae.encode(images)) if coded else vae.decoder(features(vae, images))
            loss = self.distance(drawn.float(), vae.normalise(images))
            return loss, {"reconstruction_loss": loss.detach()}
        loss, parts = vae.loss(images, noise, temperature=temperature, distance=self.distance)
        return loss, {name: parts[name].detach() for name in ("reconstruction_loss", "kl_div")}

    def left_out(self) -> list[nn.Parameter]:
        """What had no part in the last loss."""
        return [] if self.coded else weights_of_codes(self.vae)


class VaeTask:
    """A discrete VAE and pictures; captions are not looked at."""

    tokenizer = None
    tokens_per_sample = 0

    def __init__(
        self, vae: DiscreteVAE, config: VaeTaskConfig, *, examples: Callable[[], Sequence[Tensor]] | None = None
    ) -> None:
        """Raises ConfigError where there are two kinds of error, or the codebook shall come from k-means and cannot.

        Args:
            examples: reads batches of pictures, uint8 (B, 3, H, W), whose features k-means gathers.
        """
        self.model, self.config, self.examples = vae, config, examples
        self.objective: nn.Module = VaeObjective(vae, F.l1_loss if config.l1_loss else vae.distance)
        if config.l1_loss and vae.config.smooth_l1_loss:
            raise ConfigError("--l1_loss and --smooth_l1_loss are two kinds of error; leave one out")
        if config.kmeans_step is not None:
            assert examples is not None, "without pictures there is nothing to gather"
            check_width(vae)

    def prepare(self, batch: Batch, *, step: int, rng: torch.Generator) -> dict[str, Any]:
        """Pictures in [0, 1], noise for their codes, how soft these are at this step, and whether there are any."""
        device, begin = self.model.codebook.weight.device, self.config.kmeans_step
        if step == begin:
            self._set_codebook()
        return {
            "images": to_unit(batch.content, device),
            "noise": on_device(rng, device),
            "temperature": self.config.temperature(step),
            "coded": begin is None or step >= begin,
        }

    def _set_codebook(self) -> None:
        """Makes the codebook from the same pictures whoever asks: a continued run, and each of several processes."""
        assert self.examples is not None, "checked at the beginning"
        device = self.model.codebook.weight.device
        batches = (to_unit(pictures, device) for pictures in self.examples())
        set_codebook(self.model, batches, rng=generator(0, "codebook"))

    def preview(self, batch: Batch, *, rng: torch.Generator) -> Preview:
        """Pictures above what is left of them; how close they are, in dB, and how much of the codebook they use."""
        images = to_unit(batch.content, self.model.codebook.weight.device)
        codes = self.model.encode(images)
        decoded = self.model.decode(codes)
        error = float((decoded - images).square().mean())
        metrics = {"psnr": -10 * math.log10(max(error, 1e-10)), **codebook_use(codes, self.model.num_tokens)}
        return Preview(images=to_pil(torch.cat([images, decoded])), columns=len(images), metrics=metrics)

    def checkpoint(self, state: dict[str, Tensor]) -> Checkpoint:
        """The VAE."""
        return Checkpoint(kind=self.model.kind, config=self.model.config, state=state)


class AutoencoderTask(VaeTask):
    """The first stage of a quick discrete VAE: encoder and decoder without codes, before `codebook.set_codebook`.

    Raises:
        ConfigError: features and codebook differ in width.
    """

    def __init__(self, vae: DiscreteVAE) -> None:
        check_width(vae)
        super().__init__(vae, VaeTaskConfig())

    def prepare(self, batch: Batch, *, step: int, rng: torch.Generator) -> dict[str, Any]:
        """As `VaeTask.prepare`, without codes at any step."""
        return {**super().prepare(batch, step=step, rng=rng), "coded": False}

    def preview(self, batch: Batch, *, rng: torch.Generator) -> Preview:
        """Pictures above what is left of them."""
        images = to_unit(batch.content, self.model.codebook.weight.device)
        decoded = self.model.denormalise(self.model.decoder(features(self.model, images)))
        return Preview(images=to_pil(torch.cat([images, decoded])), columns=len(images))


class DecoderTask(VaeTask):
    """The last stage of a quick discrete VAE: codes stay what they are, and the decoder learns to draw them."""

    def __init__(self, vae: DiscreteVAE) -> None:
        vae.encoder.requires_grad_(False)
        super().__init__(vae, VaeTaskConfig())


def codebook_use(codes: Tensor, num_tokens: int) -> dict[str, float]:
    """The part of the codebook that codes use, and the perplexity of their use: how many entries it amounts to."""
    shares = torch.bincount(codes.flatten(), minlength=num_tokens).float() / codes.numel()
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
    return {"codebook_use": float((shares > 0).float().mean()), "perplexity": float(entropy.exp())}
