"""What is known of noisy pictures that lie around rough ones."""

from __future__ import annotations

import pytest
import torch

from diffusion.rough import around

SPREAD = torch.full((1, 1, 1, 1), 0.1)


@pytest.mark.parametrize("alphas_cumprod", [0.9999, 0.9, 0.5, 0.001])
def test_nothing_predicts_gaussian_pictures_better_and_what_is_left_has_variance_one(alphas_cumprod):
    rng = torch.Generator().manual_seed(0)
    rough, scatter, noise = (torch.randn(1, 4, 100, 100, generator=rng) for _ in range(3))
    x0 = rough + 0.1 * scatter
    alpha, sigma = alphas_cumprod**0.5, (1 - alphas_cumprod) ** 0.5
    x, v = alpha * x0 + sigma * noise, alpha * noise - sigma * x0
    known = around(x, rough, alphas_cumprod=torch.full((1, 1, 1, 1), alphas_cumprod), spread=SPREAD)
    left = (v - known.v) / known.scale
    assert abs(float(left.square().mean()) - 1) < 0.03
    assert abs(float(known.seen.square().mean()) - 1) < 0.03
    for part in (known.seen, rough):  # nothing more of v could be told by a line
        assert abs(float((left * part).mean())) < 0.02


def test_of_no_picture_all_is_seen():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(1, 1, 1, 1)
    known = around(x, torch.zeros_like(x), alphas_cumprod=0.3 * ones, spread=ones)
    torch.testing.assert_close(known.seen, x)
    assert not known.v.any()
