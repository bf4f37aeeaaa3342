"""Gumbel noise, and the softmax that samples with it (arXiv:1611.01144)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gumbel_noise(logits: Tensor, source: torch.Generator | Tensor) -> Tensor:
    """Standard Gumbel noise of the shape of `logits`, drawn from `source`, or `source` itself if it is noise already.

    Minus the logarithm of an Exp(1) variable, as in `torch.nn.functional.gumbel_softmax`, so one seed gives the noise
    of a reference that calls it. It is drawn on the generator's device and moved: a CPU generator gives every device
    the same noise.
    """
    if isinstance(source, Tensor):
        assert source.shape == logits.shape, (source.shape, logits.shape)
        return source.to(logits)
    noise = torch.empty(logits.shape, dtype=torch.float32, device=source.device)
    return noise.exponential_(generator=source).log().neg().to(logits)


def gumbel_softmax(logits: Tensor, noise: Tensor, *, temperature: float, hard: bool) -> Tensor:
    """A sample of the relaxed categorical distribution over dimension 1, shaped as `logits`, summing to 1.

    Args:
        logits: (B, V, h, w), unnormalised.
        noise: Gumbel noise shaped as `logits`.
        temperature: above 0; the lower, the closer to one-hot.
        hard: the value is one-hot, the gradient that of the soft sample (straight-through).

    From "Categorical Reparameterization with Gumbel-Softmax", equation 2 (arXiv:1611.01144).
    """
    soft = ((logits + noise) / temperature).softmax(dim=1)
    if not hard:
        return soft
    return one_hot(soft.argmax(dim=1), soft) - soft.detach() + soft


def one_hot(codes: Tensor, like: Tensor) -> Tensor:
    """The one-hot vectors (B, V, h, w) of codes (B, h, w), with the width and type of `like` (B, V, h, w)."""
    return torch.zeros_like(like).scatter_(1, codes.unsqueeze(1), 1.0)


def mix(weights: Tensor, codebook: Tensor) -> Tensor:
    """The codebook entries (V, D) averaged by `weights` (B, V, h, w): (B, D, h, w)."""
    return F.conv2d(weights.to(codebook), codebook.t()[:, :, None, None])
