"""Training losses and likelihoods.

Shapes as in `process`; every loss is (B,), and in bits per dimension where it is a bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.process import Network, Process, at

# Half a step of 8-bit pixels scaled to -1..1.
HALF_BIN = 1 / 255


def training_losses(process: Process, network: Network, *, x0: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """The loss (B,) under "loss", and the terms it is made of: "mse" or "l1", and "vb" where the variance is learned.

    Args:
        process: the chain; its config names the loss.
        network: predicts from x_t and timesteps.
        x0: (B, C, H, W) clean pictures in -1..1.
        t: (B,) steps.
        noise: (B, C, H, W), standard normal.
    From "Improved DDPM", section 3.1 (arXiv:2102.09672): L_simple + L_vlb, whose mean is detached; "l1" as in
    SR3 (arXiv:2104.07636) and Palette (arXiv:2111.05826).
    """
    x = process.q_sample(x0, t, noise)
    output = network(x, process.model_timesteps(t, x.device)).float()
    kind = process.config.loss
    if kind in ("kl", "rescaled_kl"):
        bound = variational_bound(process, output, x0=x0, x=x, t=t)
        return {"loss": bound * process.num_timesteps if kind == "rescaled_kl" else bound}
    predicted, values = process.split(output, x.shape[1])
    targets = {"epsilon": lambda: noise, "x0": lambda: x0, "v": lambda: process.v_from_x0(x0, t, noise)}
    missed = targets[process.config.prediction]() - predicted
    name, error = ("l1", _mean(missed.abs())) if kind == "l1" else ("mse", _mean(missed**2))
    if values is None:
        return {name: error, "loss": error}
    frozen = torch.cat([predicted.detach(), values], dim=1)
    vb = variational_bound(process, frozen, x0=x0, x=x, t=t)
    if kind == "rescaled_mse":
        vb = vb * (process.num_timesteps / 1000)
    return {"vb": vb, name: error, "loss": error + vb}


def variational_bound(
    process: Process, output: Tensor, *, x0: Tensor, x: Tensor, t: Tensor, clip: bool = False
) -> Tensor:
    """The bound's term (B,) of step t, in bits per dimension: a KL divergence, at t = 0 a likelihood of 8-bit pixels.

    Args:
        process: the chain.
        output: the network's, at x.
        x0: (B, C, H, W) clean pictures in -1..1.
        x: (B, C, H, W), x0 noised to step t.
        t: (B,) steps.
        clip: whether the predicted picture is clipped to -1..1 first.
    """
    predicted, values = process.split(output, x.shape[1])
    guess = process.x0_from_output(predicted, x, t)
    mean = process.posterior_mean(guess.clamp(-1, 1) if clip else guess, x, t)
    log_variance = process.log_variance(values, t, x).expand_as(mean)
    true_mean = process.posterior_mean(x0, x, t)
    true_log_variance = at(process.posterior_log_variance_clipped, t, x)
    divergence = _mean(normal_kl(true_mean, true_log_variance, mean, log_variance))
    surprise = _mean(-pixel_log_likelihood(x0, mean, log_variance / 2))
    return torch.where(t == 0, surprise, divergence) / math.log(2)


def prior_bits(process: Process, x0: Tensor) -> Tensor:
    """What the noisiest step still tells of x0, (B,) in bits per dimension: the bound's constant term."""
    alpha, last = at(process.alphas_cumprod.sqrt(), -1, x0), at(1 - process.alphas_cumprod, -1, x0)
    zero = torch.zeros_like(x0)
    return _mean(normal_kl(alpha * x0, last.log(), zero, zero)) / math.log(2)


@torch.no_grad()
def bits_per_dimension(process: Process, network: Network, *, x0: Tensor, rng: torch.Generator) -> Tensor:
    """An upper bound (B,) on the negative log-likelihood of x0; it visits every step of the chain once.

    Args:
        process: the chain.
        network: predicts from x_t and timesteps.
        x0: (B, C, H, W) clean pictures in -1..1.
        rng: a CPU generator.
    """
    total = prior_bits(process, x0)
    for step in range(process.num_timesteps):
        t = torch.full((len(x0),), step, device=x0.device)
        x = process.q_sample(x0, t, torch.randn(x0.shape, generator=rng).to(x0))
        output = network(x, process.model_timesteps(t, x.device)).float()
        total = total + variational_bound(process, output, x0=x0, x=x, t=t, clip=True)
    return total


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) of every element, in nats."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (ratio.exp() - 1 - ratio + (mean1 - mean2) ** 2 * (-log_variance2).exp())


def pixel_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """The log-probability, in nats, of every 8-bit pixel of x under a normal distribution.

    The lowest and the highest value also receive what lies beyond them. The distribution function is the
    tanh approximation that the published models were trained with.

    Args:
        x: pixels in -1..1, 256 values.
        mean: of the distribution, as x.
        log_scale: logarithm of its standard deviation.
    """
    precision = (-log_scale).exp()
    above = _normal_cdf(precision * (x - mean + HALF_BIN))
    below = _normal_cdf(precision * (x - mean - HALF_BIN))
    inside = torch.where(x > 0.999, 1 - below, above - below)
    return torch.where(x < -0.999, above, inside).clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(dim=1)
