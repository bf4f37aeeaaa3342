"""DALLE-pytorch's own image tokenizer, a convolutional discrete VAE.

After the dVAE of "Zero-Shot Text-to-Image Generation" (arXiv:2102.12092). State dicts have DALLE-pytorch's keys.

Shapes: B batch, H W picture in pixels, h w grid of codes (H / factor, W / factor), V entries of the codebook,
D its width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle3.config import option
from dalle3.errors import ConfigError
from dalle3.models.gumbel import gumbel_noise, gumbel_softmax, mix
from dalle3.models.image_tokenizer import check_codes, check_images

Distance = Callable[[Tensor, Tensor], Tensor]  # of two pictures: a scalar


@dataclass(frozen=True, kw_only=True)
class DiscreteVAEConfig:
    """A DiscreteVAE, with DALLE-pytorch's names and defaults."""

    image_size: int = option(256, help="side in pixels of the pictures it is made for")
    num_tokens: int = option(512, help="entries of the codebook")
    codebook_dim: int = option(512, help="width of a codebook entry")
    num_layers: int = option(3, help="times the side is halved")
    num_resnet_blocks: int = option(0, help="residual blocks at the resolution of the codes")
    hidden_dim: int = option(64, help="channels of the convolutions")
    channels: int = option(3, help="channels of the pictures")
    smooth_l1_loss: bool = option(False, help="smooth L1 instead of squared error")
    temperature: float = option(0.9, help="temperature of the Gumbel-softmax while training")
    straight_through: bool = option(False, help="one-hot samples with soft gradients while training")
    reinmax: bool = option(False, help="second-order gradients of straight-through samples (arXiv:2304.08612)")
    kl_div_loss_weight: float = option(
        0.0, help="weight of the divergence of the codes from uniform, in nats per batch"
    )
    normalization: tuple[tuple[float, ...], ...] | None = option(
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), help="mean and deviation of each channel, as A,B,C;A,B,C"
    )

    def __post_init__(self) -> None:
        """Raises ConfigError for what no network can be built from."""
        if self.channels != 3:
            raise ConfigError(f"channels is {self.channels}; an image tokenizer reads and draws pictures of 3 channels")
        if self.num_layers < 1 or self.image_size % self.factor:
            raise ConfigError(
                f"image_size is {self.image_size} and num_layers is {self.num_layers}; "
                "num_layers must be at least 1 and image_size a multiple of 2 ** num_layers"
            )
        if self.normalization and [len(values) for values in self.normalization] != [self.channels] * 2:
            raise ConfigError(f"normalization is {self.normalization}; it must be 3 means and 3 deviations")
        if self.temperature <= 0:
            raise ConfigError(f"temperature is {self.temperature}; it must be above 0")

    @property
    def factor(self) -> int:
        """Pixels per code along a side."""
        return 2**self.num_layers


class ResBlock(nn.Module):
    """Three convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return self.net(x) + x


class DiscreteVAE(nn.Module):
    """DALLE-pytorch's DiscreteVAE."""

    kind = "discrete_vae"
    drawing_parts: tuple[str, ...] = ("decoder", "codebook")

    def __init__(self, config: DiscreteVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens, self.embed_dim = config.num_tokens, config.codebook_dim
        self.factor, self.image_size = config.factor, config.image_size
        self.codebook = nn.Embedding(config.num_tokens, config.codebook_dim)
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The likeliest codes (B, h, w), int64, of pictures (B, 3, H, W) in [0, 1].

        Raises:
            ImageError: H or W is not a multiple of `factor`.
        """
        return self.scores(images).argmax(dim=1)

    def scores(self, images: Tensor) -> Tensor:
        """Logits (B, V, h, w), float32, of the codes of pictures (B, 3, H, W) in [0, 1].

        Raises:
            ImageError: H or W is not a multiple of `factor`.
        """
        check_images(images, self.factor)
        return self.logits(self.normalise(images))

    def embed(self, codes: Tensor) -> Tensor:
        """The codebook entries (B, D, h, w) of codes (B, h, w).

        Raises:
            CodesError: a code is outside the codebook.
        """
        check_codes(codes, self.num_tokens)
        return self.codebook(codes).permute(0, 3, 1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of codes (B, h, w).

        DALLE-pytorch returns them as they leave the network (`decode_raw`), normalised, and stretches each to its own
        darkest and brightest value when it saves it.

        Raises:
            CodesError: a code is outside the codebook.
        """
        return self.denormalise(self.decode_raw(codes).float()).clamp(0, 1)

    def decode_raw(self, codes: Tensor) -> Tensor:
        """Normalised pictures (B, 3, H, W), not clamped, of codes (B, h, w)."""
        return self.decoder(self.embed(codes))

    def logits(self, normalised: Tensor) -> Tensor:
        """Logits (B, V, h, w), float32, of normalised pictures (B, 3, H, W)."""
        return self.encoder(normalised.to(self.codebook.weight.dtype)).float()

    @property
    def distance(self) -> Distance:
        """How far redrawn pictures are from theirs, both normalised."""
        return F.smooth_l1_loss if self.config.smooth_l1_loss else F.mse_loss

    def loss(
        self,
        images: Tensor,
        noise: torch.Generator | Tensor,
        *,
        temperature: float | None = None,
        distance: Distance | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss of pictures, a scalar, and its parts `reconstruction_loss`, `kl_div` and `reconstruction`.

        The reconstruction, (B, 3, H, W), is normalised and compared with the normalised picture. The divergence of
        the codes from uniform, in nats, is summed over batch and positions, not averaged: so DALLE-pytorch computes
        it, and its weights are made for that.

        Args:
            images: (B, 3, H, W) in [0, 1].
            noise: what Gumbel noise is drawn from, or the noise, (B, V, h, w).
            temperature: of the Gumbel-softmax, above 0; None is the configuration's.
            distance: of the reconstruction from the picture; None is `distance`.
        Raises:
            ImageError: H or W is not a multiple of `factor`.
        """
        check_images(images, self.factor)
        target = self.normalise(images)
        logits = self.logits(target)
        temperature = self.config.temperature if temperature is None else temperature
        weights = self._sample(logits, gumbel_noise(logits, noise), temperature)
        reconstruction = self.decoder(mix(weights, self.codebook.weight))
        error = (distance or self.distance)(reconstruction, target)
        parts = {"reconstruction_loss": error, "kl_div": _divergence_from_uniform(logits)}
        loss = parts["reconstruction_loss"] + self.config.kl_div_loss_weight * parts["kl_div"]
        return loss, {**parts, "reconstruction": reconstruction}

    def normalise(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] on the network's scale."""
        mean, deviation = self._moments(images)
        return (images - mean) / deviation

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        mean, deviation = self._moments(images)
        return images * deviation + mean

    def _moments(self, images: Tensor) -> Tensor:
        moments = self.config.normalization or ((0.0,) * 3, (1.0,) * 3)
        return torch.tensor(moments, device=images.device, dtype=images.dtype)[:, None, :, None, None]

    def _sample(self, logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
        hard = self.config.straight_through
        weights = gumbel_softmax(logits, noise, temperature=temperature, hard=hard)
        return _reinmax(logits, weights, temperature) if hard and self.config.reinmax else weights


def _encoder(config: DiscreteVAEConfig) -> nn.Sequential:
    width, depth = config.hidden_dim, config.num_layers
    halving = [
        nn.Sequential(nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU())
        for before, after in pairwise([config.channels] + [width] * depth)
    ]
    residual = [ResBlock(width) for _ in range(config.num_resnet_blocks)]
    return nn.Sequential(*halving, *residual, nn.Conv2d(width, config.num_tokens, 1))


def _decoder(config: DiscreteVAEConfig) -> nn.Sequential:
    width, depth, blocks = config.hidden_dim, config.num_layers, config.num_resnet_blocks
    residual = [nn.Conv2d(config.codebook_dim, width, 1), *(ResBlock(width) for _ in range(blocks))] if blocks else []
    doubling = [
        nn.Sequential(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU())
        for before, after in pairwise([width if blocks else config.codebook_dim] + [width] * depth)
    ]
    return nn.Sequential(*residual, *doubling, nn.Conv2d(width, config.channels, 1))


def _divergence_from_uniform(logits: Tensor) -> Tensor:
    log_probabilities = logits.log_softmax(dim=1)
    uniform = -torch.tensor(float(logits.shape[1])).log()
    return (log_probabilities.exp() * (log_probabilities - uniform)).sum()


def _reinmax(logits: Tensor, sample: Tensor, temperature: float) -> Tensor:
    """`sample`, one-hot, with the gradient of ReinMax: "Bridging Discrete and Backpropagation", algorithm 2."""
    sample = sample.detach()
    average = (sample + (logits / temperature).softmax(dim=1)) / 2
    # A softmax whose value is `average` and whose gradient flows into `logits`.
    tilted = ((average.clamp(min=1e-20).log() - logits).detach() + logits).softmax(dim=1)
    surrogate = 2 * tilted - 0.5 * logits.softmax(dim=1)
    return surrogate - surrogate.detach() + sample
