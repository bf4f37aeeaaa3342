"""The Fréchet distance against what can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dalle3.evaluate.frechet import frechet_distance, moments, trace_of_root


def gaussian(mean: Tensor, covariance: Tensor, *, number: int = 64, seed: int = 0) -> Tensor:
    """Features whose mean and covariance are exactly these."""
    points = torch.randn(number, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    centre, found = moments(points)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(found), (points - centre).t(), upper=False)
    return (torch.linalg.cholesky(covariance) @ white).t() + mean


def spread(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def test_equal_sets_are_at_no_distance():
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-12)


def test_of_axes_that_agree_it_is_the_sum_of_squared_differences_of_means_and_deviations():
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    first, second = gaussian(mean, spread(4, 9, 1)), gaussian(mean + 2, spread(1, 16, 0.25), seed=1)
    assert frechet_distance(first, second) == pytest.approx(3 * 2**2 + 1**2 + 1**2 + 0.5**2)


def test_in_two_dimensions_the_root_is_that_of_trace_and_determinant():
    first = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
    second = torch.tensor([[0.5, -0.3], [-0.3, 3.0]], dtype=torch.float64)
    product = first @ second
    closed = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    assert float(trace_of_root(first, second)) == pytest.approx(closed, rel=1e-12)
    zero = torch.zeros(2, dtype=torch.float64)
    distance = frechet_distance(gaussian(zero, first), gaussian(zero, second, seed=1))
    assert distance == pytest.approx(float(first.trace() + second.trace()) - 2 * closed)


def test_it_is_the_same_either_way():
    first, second = (torch.randn(20, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-10)


def test_fewer_features_than_dimensions_still_have_a_distance():
    first, second = (torch.randn(3, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(first, second) > 1


def test_features_of_one_dimension_are_gaussians_on_a_line():
    first, second = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [3.0]])
    assert frechet_distance(first, second) == pytest.approx(2**2 + 2)
