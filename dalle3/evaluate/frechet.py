"""The Fréchet distance between two sets of features, each taken for a Gaussian (arXiv:1706.08500).

Shapes: N M features of the two sets, E their width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """The squared 2-Wasserstein distance between the Gaussians with the moments of features (N, E) and (M, E).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in float64. Few features make it too large: their covariance has not
    the rank of the truth, so figures can be compared for equal N and M only. Features of a CLIP have length 1, so of
    those it is between 0 and 4.
    """
    assert min(len(first), len(second)) >= 2, "a single feature has no covariance"
    (mean, covariance), (other_mean, other_covariance) = moments(first), moments(second)
    offset = (mean - other_mean).square().sum()
    spread = covariance.trace() + other_covariance.trace() - 2 * trace_of_root(covariance, other_covariance)
    return max(0.0, float(offset + spread))


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (E,) and the unbiased covariance (E, E) of features (N, E), float64."""
    features = features.double()
    return features.mean(0), torch.cov(features.t()).reshape(features.shape[1], -1)


def trace_of_root(first: Tensor, second: Tensor) -> Tensor:
    """tr((A B)^(1/2)) of covariances (E, E).

    A B is similar to A^(1/2) B A^(1/2), which is symmetric, so its eigenvalues are real and at least 0.
    """
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.t()
    product = root @ second @ root
    return torch.linalg.eigvalsh((product + product.t()) / 2).clamp(min=0).sqrt().sum()
