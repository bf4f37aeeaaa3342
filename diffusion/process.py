"""The diffusion process: how pictures are noised, and what a network's output says about the step back.

Shapes: B pictures, C channels, H W pixels, T steps of the chain. A step `t` is an index into the chain as
respaced, 0 to T - 1 with T - 1 the noisiest: one int for a whole batch, or int64 (B,). Everything the chain
is made of is a float64 table (T,); coefficients meet pictures in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from diffusion.errors import ConfigError
from diffusion.schedule import PIXEL_STD, REFERENCE_STEPS, Schedule, make_betas, respaced_betas, respaced_timesteps

Network = Callable[[Tensor, Tensor], Tensor]
"""network(x, timesteps) -> output: (B, C, H, W) and (1,) or (B,) to (B, C or 2C, H, W), its conditions bound."""


@dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """How a network was trained; its weights do not tell, and mean nothing under another process.

    Attributes:
        diffusion_steps: length of the full chain.
        noise_schedule: which variances it has.
        prediction: what the network's first C channels are: the noise, the clean picture, or
            v = sqrt(alphas_cumprod) noise - sqrt(1 - alphas_cumprod) x0.
        variance: of a step back. "learned_range" and "learned" read it from C more channels, as a place
            between the two fixed ones or as its logarithm.
        loss: "mse" adds the variational bound, which then trains only the variance, where that is learned;
            "l1" does so with absolute instead of squared errors, "rescaled_mse" weighs the bound by T / 1000;
            "kl" and "rescaled_kl" (times T) are the bound alone.
        rescale_timesteps: the network is told timesteps as if the full chain had 1000 steps.
    """

    diffusion_steps: int = 1000
    noise_schedule: Schedule = "linear"
    prediction: Literal["epsilon", "x0", "v"] = "epsilon"
    variance: Literal["learned_range", "learned", "fixed_small", "fixed_large"] = "learned_range"
    loss: Literal["mse", "l1", "rescaled_mse", "kl", "rescaled_kl"] = "mse"
    rescale_timesteps: bool = False

    @property
    def learned_variance(self) -> bool:
        """Whether the network has C more output channels for the variance."""
        return self.variance in ("learned_range", "learned")


@dataclass(frozen=True)
class Prediction:
    """What is known, at one noisy x, about the way back.

    Attributes:
        x0: (B, C, H, W), the expected clean picture.
        variance: broadcastable to x0, of the step from x_t to x_{t-1}; only ancestral sampling reads it.
        gradient: (B, C, H, W), of the logarithm of a likelihood at x_t that guides the sample, or None.
            Ancestral sampling moves its mean by variance * gradient (arXiv:2105.05233, algorithm 1); every
            other sampler moves x0, by `Process.guided_x0` (algorithm 2).
    """

    x0: Tensor
    variance: Tensor
    gradient: Tensor | None = None


class Denoiser(Protocol):
    """The one contract between networks, guidance and samplers: x (B, C, H, W) at step t to a `Prediction`."""

    def __call__(self, x: Tensor, t: int) -> Prediction: ...


class Process:
    """A chain, whole or respaced, and the arithmetic along it.

    Args:
        config: how the network was trained.
        respacing: a respacing such as "25" (see `schedule.respaced_timesteps`), or the timesteps to keep.
        data_std: as `schedule.noise_angles`; only an "angle25" looks at it.
    Raises:
        ConfigError: the schedule or the respacing cannot be.
    From DDPM (arXiv:2006.11239) and "Improved DDPM" (arXiv:2102.09672).
    """

    def __init__(
        self, config: ProcessConfig, respacing: str | tuple[int, ...] = "", *, data_std: float = PIXEL_STD
    ) -> None:
        full = make_betas(config.noise_schedule, config.diffusion_steps)
        named = isinstance(respacing, str)
        keep = respaced_timesteps(full, respacing, data_std=data_std) if named else respacing
        self.config = config
        self.timestep_map = tuple(keep)
        self.num_timesteps = len(keep)
        self.betas = respaced_betas(full, keep)
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)
        ones, zeros = self.betas.new_ones(1), self.betas.new_zeros(1)
        self.alphas_cumprod_prev = torch.cat([ones, self.alphas_cumprod[:-1]])
        self.alphas_cumprod_next = torch.cat([self.alphas_cumprod[1:], zeros])
        self.sqrt_recip_alphas_cumprod = (1 / self.alphas_cumprod).sqrt()
        self.sqrt_recipm1_alphas_cumprod = (1 / self.alphas_cumprod - 1).sqrt()
        noise_left = 1 - self.alphas_cumprod
        self.posterior_variance = self.betas * (1 - self.alphas_cumprod_prev) / noise_left
        self.posterior_mean_coef1 = self.betas * self.alphas_cumprod_prev.sqrt() / noise_left
        self.posterior_mean_coef2 = (1 - self.alphas_cumprod_prev) * (1 - self.betas).sqrt() / noise_left
        # At t = 0 the posterior is a point; its logarithm, and the large fixed variance, borrow the next step's.
        borrowed = self.posterior_variance[1:2] if len(keep) > 1 else self.betas
        self.posterior_log_variance_clipped = torch.cat([borrowed, self.posterior_variance[1:]]).log()
        self.large_variance = torch.cat([borrowed, self.betas[1:]])

    def model_timesteps(self, t: int | Tensor, device: torch.device) -> Tensor:
        """The timesteps (1,) or (B,) that the network is told at step t: of the full chain, maybe rescaled to 1000."""
        timesteps = torch.tensor(self.timestep_map, device=device)[t].reshape(-1)
        if not self.config.rescale_timesteps:
            return timesteps
        return timesteps.float() * (REFERENCE_STEPS / self.config.diffusion_steps)

    def q_sample(self, x0: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """A draw from q(x_t | x0), (B, C, H, W), made of the standard normal `noise`."""
        alpha, sigma = self._levels(t, x0)
        return alpha * x0 + sigma * noise

    def posterior_mean(self, x0: Tensor, x: Tensor, t: int | Tensor) -> Tensor:
        """The mean of q(x_{t-1} | x_t = x, x0), (B, C, H, W)."""
        return at(self.posterior_mean_coef1, t, x) * x0 + at(self.posterior_mean_coef2, t, x) * x

    def x0_from_epsilon(self, x: Tensor, t: int | Tensor, epsilon: Tensor) -> Tensor:
        """The clean picture that, with noise `epsilon`, made x at step t."""
        return at(self.sqrt_recip_alphas_cumprod, t, x) * x - at(self.sqrt_recipm1_alphas_cumprod, t, x) * epsilon

    def epsilon_from_x0(self, x: Tensor, t: int | Tensor, x0: Tensor) -> Tensor:
        """The noise that, with clean picture `x0`, made x at step t."""
        scaled = at(self.sqrt_recip_alphas_cumprod, t, x) * x
        return (scaled - x0) / at(self.sqrt_recipm1_alphas_cumprod, t, x)

    def x0_from_v(self, x: Tensor, t: int | Tensor, v: Tensor) -> Tensor:
        """The clean picture of which v and x at step t are rotations (arXiv:2202.00512, appendix D)."""
        alpha, sigma = self._levels(t, x)
        return alpha * x - sigma * v

    def v_from_x0(self, x0: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """v = sqrt(alphas_cumprod) noise - sqrt(1 - alphas_cumprod) x0."""
        alpha, sigma = self._levels(t, x0)
        return alpha * noise - sigma * x0

    def guided_x0(self, prediction: Prediction, t: int) -> Tensor:
        """The expected clean picture once `prediction.gradient` is heeded, (B, C, H, W)."""
        if prediction.gradient is None:
            return prediction.x0
        left = self.alphas_cumprod[t].item()
        return prediction.x0 + ((1 - left) / left**0.5) * prediction.gradient

    def split(self, output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
        """The network's prediction (B, C, H, W), and its variance channels where the process learns any.

        Raises:
            ConfigError: the output has another number of channels than this process reads.
        """
        wanted = 2 * channels if self.config.learned_variance else channels
        if output.shape[1] != wanted:
            raise ConfigError(
                f"the network puts out {output.shape[1]} channels, but variance={self.config.variance!r} needs "
                f"{wanted}; learn_sigma of the network must be {self.config.learned_variance}"
            )
        predicted, *rest = output.split(channels, dim=1)
        return predicted, (rest[0] if rest else None)

    def x0_from_output(self, predicted: Tensor, x: Tensor, t: int | Tensor) -> Tensor:
        """The expected clean picture, given the network's prediction in whatever form it was trained."""
        if self.config.prediction == "epsilon":
            return self.x0_from_epsilon(x, t, predicted)
        if self.config.prediction == "v":
            return self.x0_from_v(x, t, predicted)
        return predicted

    def log_variance(self, values: Tensor | None, t: int | Tensor, like: Tensor) -> Tensor:
        """The log-variance of the step back, broadcastable to `like`, from the network's variance channels."""
        kind = self.config.variance
        if kind == "fixed_large":
            return at(self.large_variance.log(), t, like)
        smallest = at(self.posterior_log_variance_clipped, t, like)
        if kind == "fixed_small":
            return smallest
        assert values is not None
        if kind == "learned":
            return values
        fraction = (values + 1) / 2
        return fraction * at(self.betas.log(), t, like) + (1 - fraction) * smallest

    def prediction(self, output: Tensor, x: Tensor, t: int | Tensor) -> Prediction:
        """What the network's output (B, C or 2C, H, W) at x says; x0 is not clipped.

        Raises:
            ConfigError: as `split`.
        """
        predicted, values = self.split(output, x.shape[1])
        x0 = self.x0_from_output(predicted, x, t)
        if self.config.variance == "fixed_small":
            return Prediction(x0, at(self.posterior_variance, t, x))
        return Prediction(x0, self.log_variance(values, t, x).exp())

    def denoiser(self, network: Network) -> Denoiser:
        """The denoiser that asks `network`; gradients flow through it wherever they are enabled."""

        def denoise(x: Tensor, t: int) -> Prediction:
            return self.prediction(network(x, self.model_timesteps(t, x.device)).float(), x, t)

        return denoise

    def _levels(self, t: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return at(self.alphas_cumprod.sqrt(), t, like), at((1 - self.alphas_cumprod).sqrt(), t, like)


def at(table: Tensor, t: int | Tensor, like: Tensor) -> Tensor:
    """The entries of `table` (T,) at t, float32 (1 or B, 1, 1, 1) beside `like`."""
    return table.float().to(like.device)[t].reshape(-1, 1, 1, 1)
