"""Which steps of the chain a network is trained on.

Shapes: B pictures of a batch, T steps of the chain, L losses remembered of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MEMORY = 10  # losses remembered of each step
EXPLORED = 0.001  # part of the draws that is uniform whatever the losses are


class UniformTimesteps(nn.Module):
    """Every step equally often; here and below, weights make the mean of losses that of all steps, unless said."""

    def __init__(self, num_timesteps: int) -> None:
        super().__init__()
        self.num_timesteps = num_timesteps

    def draw(self, number: int, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Steps (B,), int64, and the weights (B,) of their losses.

        Args:
            number: B.
            rng: a CPU generator; what is drawn is on the CPU.
        """
        shares = self.shares().cpu()
        t = torch.multinomial(shares, number, replacement=True, generator=rng)
        return t, self.weights(shares[t]).float()

    def weights(self, shares: Tensor) -> Tensor:
        """Weights (B,) of the losses of steps drawn as often as shares (B,) say."""
        return 1 / (self.num_timesteps * shares)

    def shares(self) -> Tensor:
        """How often each step is drawn, (T,), float64, summing to 1."""
        return torch.full((self.num_timesteps,), 1 / self.num_timesteps, dtype=torch.float64)

    def note(self, t: Tensor, losses: Tensor) -> None:
        """Learns the losses (B,) of steps (B,), before weighting."""


class PreferredTimesteps(UniformTimesteps):
    """Some steps more often than others, for good; losses count as drawn: the network is to be good there, at a cost.

    Args:
        often: (T,), from 0 on, how often each is drawn in proportion.
    """

    often: Tensor

    def __init__(self, often: Tensor) -> None:
        super().__init__(len(often))
        self.register_buffer("often", often.double() / often.double().sum(), persistent=False)

    def shares(self) -> Tensor:
        """How often each step is drawn, (T,), float64, summing to 1."""
        return self.often

    def weights(self, shares: Tensor) -> Tensor:
        """Ones (B,)."""
        return torch.ones_like(shares)


class AngleTimesteps(PreferredTimesteps):
    """Steps evenly in the angle from picture to noise, which is where samplers of few steps go.

    Args:
        angles: (T,), increasing, as `schedule.noise_angles`.
    """

    def __init__(self, angles: Tensor) -> None:
        (often,) = torch.gradient(angles.double())
        super().__init__(often)


class VisitedTimesteps(PreferredTimesteps):
    """The steps that a respaced chain visits, each as often, and no others.

    Args:
        visited: steps of the whole chain, as `Process.timestep_map`.
        num_timesteps: T.
    """

    def __init__(self, visited: Sequence[int], num_timesteps: int) -> None:
        super().__init__(torch.zeros(num_timesteps).index_fill(0, torch.tensor(visited), 1))


class LossAwareTimesteps(UniformTimesteps):
    """Steps in proportion to the root mean square of their last losses; evenly, until each has been seen ten times.

    The bound's terms differ by orders of magnitude, so this makes its estimate far less noisy.
    From "Improved DDPM", section 3.3 (arXiv:2102.09672).
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, num_timesteps: int) -> None:
        super().__init__(num_timesteps)
        self.register_buffer("losses", torch.zeros(num_timesteps, MEMORY, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_timesteps, dtype=torch.int64))

    def shares(self) -> Tensor:
        """How often each step is drawn, (T,), float64, summing to 1."""
        if bool((self.counts < MEMORY).any()):
            return super().shares()
        spread = self.losses.square().mean(dim=1).sqrt()
        return spread / spread.sum() * (1 - EXPLORED) + EXPLORED / self.num_timesteps

    @torch.no_grad()
    def note(self, t: Tensor, losses: Tensor) -> None:
        """Learns the losses (B,) of steps (B,), before weighting; of each step the last ten are kept."""
        for step, loss in zip(t.tolist(), losses.double(), strict=True):
            place = int(self.counts[step]) % MEMORY
            self.losses[step, place] = loss
            self.counts[step] += 1
