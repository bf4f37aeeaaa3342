"""VQGAN and GumbelVQ: picture tokenizers with a nearest-entry and with a sampled codebook.

VQGAN is from "Taming Transformers" (arXiv:2012.09841), GumbelVQ its variant with the Gumbel-softmax
(arXiv:1611.01144). State dicts have the keys of taming-transformers without `loss.*`.

Shapes: B batch, H W picture in pixels, h w grid of codes (H / factor, W / factor), V entries of the codebook,
D its width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle3.config import option
from dalle3.errors import ConfigError
from dalle3.models.gumbel import gumbel_noise, gumbel_softmax, mix
from dalle3.models.image_tokenizer import check_codes, check_images
from dalle3.models.vqgan_autoencoder import AutoencoderConfig, Decoder, Encoder, to_signed, to_unit


@dataclass(frozen=True, kw_only=True)
class VQGANConfig(AutoencoderConfig):
    """A VQGAN; the defaults are the published ImageNet f16 model of 1024 entries."""

    beta: float = option(0.25, help="weight of the term of the codebook loss that moves the codebook")


@dataclass(frozen=True, kw_only=True)
class GumbelVQConfig(AutoencoderConfig):
    """A GumbelVQ; the defaults are the published f8 model of 8192 entries."""

    num_tokens: int = option(8192, help="entries of the codebook")
    ch_mult: tuple[int, ...] = option((1, 1, 2, 4), help="channels of each level over `ch`; each level halves the side")
    attn_resolutions: tuple[int, ...] = option((32,), help="sides at which the levels attend, at `resolution`")
    kl_weight: float = option(5e-4, help="weight of the divergence of the codes from uniform")
    straight_through: bool = option(True, help="one-hot samples with soft gradients while training")

    def __post_init__(self) -> None:
        """Raises ConfigError for what no network can be built from."""
        super().__post_init__()
        if self.z_channels != self.embed_dim:
            raise ConfigError(
                f"z_channels is {self.z_channels} and embed_dim is {self.embed_dim}; a GumbelVQ needs them equal"
            )


class _Tokenizer(nn.Module):
    """What both do around their codebook; a subclass has `codebook` and `encode`."""

    kind: str

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.num_tokens, self.embed_dim = config.num_tokens, config.embed_dim
        self.factor, self.image_size = config.factor, config.resolution
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    @property
    def codebook(self) -> Tensor:
        """The entries, (V, D)."""
        raise NotImplementedError

    def latents(self, images: Tensor) -> Tensor:
        """What is quantized, (B, D, h, w), of pictures (B, 3, H, W) in [0, 1].

        Raises:
            ImageError: H or W is not a multiple of `factor`.
        """
        check_images(images, self.factor)
        signed = to_signed(images).to(self.codebook.dtype, memory_format=torch.channels_last)
        return self.quant_conv(self.encoder(signed))

    def draw(self, quantized: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), near [-1, 1] but not clamped, of mixtures of codebook entries (B, D, h, w)."""
        return self.decoder(self.post_quant_conv(quantized))

    def embed(self, codes: Tensor) -> Tensor:
        """The codebook entries (B, D, h, w) of codes (B, h, w).

        Raises:
            CodesError: a code is outside the codebook.
        """
        check_codes(codes, self.num_tokens)
        return self._entries(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of codes (B, h, w).

        Raises:
            CodesError: a code is outside the codebook.
        """
        return to_unit(self.draw(self.embed(codes)).float())

    def _entries(self, codes: Tensor) -> Tensor:
        # A (B, h, w, D) lookup seen as (B, D, h, w) is channels_last, and the whole decoder stays so: on two CPU cores
        # 7 % faster in float32 and 10 % in bfloat16 (f8, 128 px).
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)


class VectorQuantizer(nn.Module):
    """A codebook in which a latent becomes its nearest entry."""

    def __init__(self, num_tokens: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_tokens, 1 / num_tokens)

    def forward(self, z: Tensor) -> Tensor:
        """The codes (B, h, w), int64, of latents (B, D, h, w)."""
        entries = self.embedding.weight.float()
        flat = z.permute(0, 2, 3, 1).flatten(0, 2).float()
        # |z|^2 is the same for all entries of a row: leaving it out keeps the digits that tell them apart.
        distances = torch.addmm(entries.square().sum(1), flat, entries.t(), alpha=-2)  # (B * h * w, V)
        return distances.argmin(dim=1).view(z.shape[0], *z.shape[2:])


class VQGAN(_Tokenizer):
    """Taming's VQModel."""

    kind = "vqgan"
    drawing_parts: tuple[str, ...] = ("decoder", "post_quant_conv")

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__(config)
        self.config = config
        self.quantize = VectorQuantizer(config.num_tokens, config.embed_dim)

    @property
    def codebook(self) -> Tensor:
        """The entries, (V, D)."""
        return self.quantize.embedding.weight

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The codes (B, h, w), int64, of pictures (B, 3, H, W) in [0, 1].

        Raises:
            ImageError: H or W is not a multiple of `factor`.
        """
        return self.quantize(self.latents(images))

    def quantize_st(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest entries of latents `z` (B, D, h, w), their codes (B, h, w) and the codebook loss, a scalar.

        The entries pass their gradient to `z` as if they were `z` (straight-through). The loss is equation 4 of
        arXiv:2012.09841 with `beta` on the term that moves the codebook, not on the one that moves the encoder: so
        the published models were trained.
        """
        codes = self.quantize(z)
        entries = self._entries(codes)
        loss = F.mse_loss(z, entries.detach()) + self.config.beta * F.mse_loss(entries, z.detach())
        return z + (entries - z).detach(), codes, loss

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (B, 3, H, W) in [0, 1] redrawn for training, the codebook loss and the codes (B, h, w).

        The redrawn pictures are on the network's scale, near [-1, 1] and not clamped: compare them with
        `to_signed(images)`.
        """
        quantized, codes, loss = self.quantize_st(self.latents(images))
        return self.draw(quantized), loss, codes


class GumbelQuantizer(nn.Module):
    """A codebook whose entries are drawn with probabilities computed from the latent."""

    def __init__(self, z_channels: int, num_tokens: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(z_channels, num_tokens, 1)
        self.embed = nn.Embedding(num_tokens, embed_dim)

    def forward(self, z: Tensor) -> Tensor:
        """Logits (B, V, h, w), float32, of latents (B, Z, h, w)."""
        return self.proj(z).float()


class GumbelVQ(_Tokenizer):
    """Taming's GumbelVQ, the image tokenizer of DALL-3."""

    kind = "gumbel_vq"
    drawing_parts: tuple[str, ...] = ("decoder", "post_quant_conv", "quantize.embed")

    def __init__(self, config: GumbelVQConfig) -> None:
        super().__init__(config)
        self.config = config
        self.quantize = GumbelQuantizer(config.z_channels, config.num_tokens, config.embed_dim)

    @property
    def codebook(self) -> Tensor:
        """The entries, (V, D)."""
        return self.quantize.embed.weight

    @torch.no_grad()
    def encode(self, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """The likeliest codes (B, h, w), int64, of pictures (B, 3, H, W) in [0, 1]; sampled ones, given `rng`.

        Taming samples always, so that one picture has other codes each time it is encoded.

        Raises:
            ImageError: H or W is not a multiple of `factor`.
        """
        logits = self.scores(images)
        if rng is not None:
            logits = logits + gumbel_noise(logits, rng)
        return logits.argmax(dim=1)

    def scores(self, images: Tensor) -> Tensor:
        """Logits (B, V, h, w), float32, of the codes of pictures (B, 3, H, W) in [0, 1].

        Raises:
            ImageError: H or W is not a multiple of `factor`.
        """
        return self.quantize(self.latents(images))

    def quantize_gumbel(
        self, z: Tensor, noise: torch.Generator | Tensor, *, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sampled mixtures of entries (B, D, h, w) of latents `z`, their codes (B, h, w) and the weighted KL loss.

        The mixtures are single entries in evaluation, and while training if `straight_through` (arXiv:1611.01144,
        section 2.2). The loss, a scalar, is `kl_weight` times the divergence of the probabilities from uniform, in
        nats, averaged over codes.

        Args:
            z: (B, D, h, w).
            noise: what Gumbel noise is drawn from, or the noise, (B, V, h, w).
            temperature: above 0.
        """
        logits = self.quantize(z)
        hard = self.config.straight_through or not self.training
        weights = gumbel_softmax(logits, gumbel_noise(logits, noise), temperature=temperature, hard=hard)
        probabilities = logits.softmax(dim=1)
        divergence = (probabilities * (probabilities * self.num_tokens + 1e-10).log()).sum(dim=1).mean()
        return mix(weights, self.codebook), weights.argmax(dim=1), self.config.kl_weight * divergence

    def forward(
        self, images: Tensor, noise: torch.Generator | Tensor, *, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (B, 3, H, W) in [0, 1] redrawn for training, the weighted KL loss and the codes (B, h, w).

        Arguments as in `quantize_gumbel`. The redrawn pictures are on the network's scale, near [-1, 1] and not
        clamped: compare them with `to_signed(images)`.
        """
        quantized, codes, loss = self.quantize_gumbel(self.latents(images), noise, temperature=temperature)
        return self.draw(quantized), loss, codes
