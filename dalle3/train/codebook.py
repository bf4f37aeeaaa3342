"""Codebooks that are used whole: watched, revived, or made from k-means to start where the encoder already is.

Learning a codebook from nothing through Gumbel noise takes thousands of steps, most of them with a handful of entries
in use. An autoencoder without codes learns in hundreds; its latents, clustered, are a codebook that is used whole.

Shapes: N latents, D their width, V codebook entries, B batch, h w grid of codes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dalle3.errors import ConfigError
from dalle3.models.discrete_vae import DiscreteVAE
from dalle3.train.exchange import from_first, sum_of_all
from dalle3.train.task import Correction, Metrics

RECENT = 100  # passes over which the use of a codebook is measured
SEEDS_AT_ONCE = 16
SHARPNESS = 16.0  # logits for the mean squared error of an entry; Gumbel noise has a deviation of 1.3


def check_width(vae: DiscreteVAE) -> None:
    """Raises ConfigError unless the encoder's features can be codebook entries."""
    config = vae.config
    if config.codebook_dim != config.hidden_dim:
        raise ConfigError(
            f"codebook_dim is {config.codebook_dim} and hidden_dim {config.hidden_dim}; "
            "a codebook made from the encoder's features needs both to be the same"
        )


def features(vae: DiscreteVAE, images: Tensor) -> Tensor:
    """What the encoder sees before it chooses codes, (B, D, h, w), of pictures (B, 3, H, W) in [0, 1]."""
    assert isinstance(vae.encoder, nn.Sequential)
    return vae.encoder[:-1](vae.normalise(images))


def weights_of_codes(vae: DiscreteVAE) -> list[nn.Parameter]:
    """The weights between `features` and decoder: of the logits and of the codebook."""
    assert isinstance(vae.encoder, nn.Sequential)
    return [*vae.encoder[-1].parameters(), *vae.codebook.parameters()]


@torch.no_grad()
def set_codebook(vae: DiscreteVAE, batches: Iterable[Tensor], *, rng: torch.Generator, rounds: int = 10) -> None:
    """Gives a VAE the k-means of its features as codebook, and logits that choose the nearest entry.

    The logits are minus the squared distances, scaled: a 1x1 convolution, as |f - c|^2 is linear in the feature f
    up to a term that is the same for all entries.

    Args:
        batches: pictures (B, 3, H, W) in [0, 1].
        rounds: of k-means.
    Raises:
        ConfigError: features and codebook differ in width.
    """
    check_width(vae)
    latents = torch.cat([features(vae, images).movedim(1, -1).flatten(0, 2) for images in batches])
    entries, error = k_means(latents, vae.num_tokens, rng=rng, rounds=rounds)
    to_logits = vae.encoder[-1]
    assert isinstance(to_logits, nn.Conv2d)
    assert to_logits.bias is not None
    scale = SHARPNESS / max(error, 1e-8)
    vae.codebook.weight.copy_(entries)
    to_logits.weight.copy_(2 * scale * entries[:, :, None, None])
    to_logits.bias.copy_(-scale * entries.square().sum(1))


def k_means(points: Tensor, number: int, *, rng: torch.Generator, rounds: int) -> tuple[Tensor, float]:
    """`number` centres (V, D) of points (N, D), and the mean squared distance to the nearest.

    The first centres are drawn in proportion to their squared distance from those before them, sixteen at a time
    (k-means||, arXiv:1203.6402). A centre that loses all its points stays where it is.
    """
    centres = _spread(points, number, rng)
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(1)
        counts = torch.bincount(nearest, minlength=number)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    error = torch.cdist(points, centres).amin(1).square().mean()
    return centres, float(error)


def _spread(points: Tensor, number: int, rng: torch.Generator) -> Tensor:
    centres = points[torch.randint(len(points), (1,), generator=rng)]
    distance = (points - centres).square().sum(1)
    while len(centres) < number:
        drawn = points[torch.multinomial(distance.clamp(min=1e-12).cpu(), SEEDS_AT_ONCE, generator=rng)]
        centres = torch.cat([centres, drawn])
        distance = torch.minimum(distance, torch.cdist(points, drawn).square().amin(1))
    return centres[:number]


class CodebookUse(nn.Module):
    """Which entries of a codebook the codes of all processes used of late, and new places for those they did not.

    An entry that no latent is nearest to gets no gradient, and so stays where no latent is. Putting it upon a latent
    of the batch brings it back: the random restarts of Jukebox (arXiv:2005.00341, section 3.1).

    Args:
        revive_every: passes after which entries unused since the last time are moved; 0 moves none.
    """

    idle: Tensor  # (V,) passes since an entry was used
    shares: Tensor  # (V,) running average of the part of the codes that are this entry
    since: Tensor  # passes since entries were moved

    def __init__(self, num_tokens: int, *, revive_every: int = 0) -> None:
        super().__init__()
        self.revive_every = revive_every
        self.register_buffer("idle", torch.full((num_tokens,), RECENT))
        self.register_buffer("shares", torch.zeros(num_tokens))
        self.register_buffer("since", torch.zeros((), dtype=torch.long))
        self._latents: Tensor | None = None

    @torch.no_grad()
    def note(self, codes: Tensor, latents: Tensor | None = None) -> None:
        """Takes up one pass: its codes (B, h, w) and, to revive entries with, its latents (B, D, h, w)."""
        counts = sum_of_all(torch.bincount(codes.flatten(), minlength=len(self.idle)))
        self.idle.add_(1).masked_fill_(counts > 0, 0)
        self.shares.lerp_((counts / counts.sum()).to(self.shares.dtype), 1 / RECENT)
        self.since.add_(1)
        if latents is not None and self.revive_every:
            self._latents = latents.detach().movedim(1, -1).flatten(0, -2).float()

    def metrics(self) -> Metrics:
        """The part of the codebook in use in the last hundred passes, and the perplexity of its use."""
        shares = self.shares.float() / self.shares.sum().clamp(min=1e-12)
        entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
        return {"codebook_use": (self.idle < RECENT).float().mean(), "perplexity": entropy.exp()}

    def revive(self, codebook: nn.Parameter, *, rng: torch.Generator) -> list[Correction]:
        """What moves idle entries of a codebook (V, D) upon latents of the last pass of the first process, if due.

        No two are put upon the same latent; where latents are too few, the rest waits for the next time.
        """
        if self._latents is None or self.since < self.revive_every:
            return []
        places = torch.randperm(len(self._latents), generator=rng, device=rng.device)
        (dead,) = (self.idle >= self.since).nonzero(as_tuple=True)
        self.since.zero_()
        dead = dead[: len(places)]
        latents = from_first(self._latents[places[: len(dead)]])
        return [(codebook, lambda entries: entries.index_copy(0, dead, latents.to(entries.dtype)))] if len(dead) else []
