"""Schedules and respacings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.errors import ConfigError
from diffusion.schedule import (
    angle_timesteps,
    cosine_betas,
    linear_betas,
    make_betas,
    respaced_betas,
    respaced_timesteps,
)


def cumprod(betas: torch.Tensor) -> torch.Tensor:
    return torch.cumprod(1 - betas, dim=0)


@given(count=st.integers(1, 300), sections=st.integers(1, 4))
def test_a_respacing_has_the_steps_it_names_in_order_and_in_range(count, sections):
    kept = respaced_timesteps(linear_betas(1300), ",".join([str(count)] * sections))
    assert len(kept) == count * sections
    assert list(kept) == sorted(set(kept))
    assert kept[0] == 0
    assert kept[-1] < 1300


@given(keep=st.sets(st.integers(0, 99), min_size=1))
def test_a_respaced_chain_passes_through_the_same_noise_levels(keep):
    keep = sorted(keep)
    betas = cosine_betas(100)
    torch.testing.assert_close(cumprod(respaced_betas(betas, keep)), cumprod(betas)[keep], rtol=1e-9, atol=1e-15)


def test_a_linear_schedule_ends_equally_noisy_at_any_length():
    short, long = (cumprod(linear_betas(steps))[-1].item() for steps in (500, 4000))
    assert short == pytest.approx(long, rel=0.2)


def test_a_single_step_begins_at_the_noise():
    assert angle_timesteps(make_betas("cosine", 100), 1) == (99,)


@given(count=st.integers(2, 100), schedule=st.sampled_from(["linear", "cosine"]))
def test_an_even_angle_has_the_steps_it_names_and_both_ends(count, schedule):
    kept = angle_timesteps(make_betas(schedule, 100), count)
    assert len(kept) == count
    assert list(kept) == sorted(set(kept))
    assert (kept[0], kept[-1]) == (0, 99)


@pytest.mark.parametrize("data_std", [0.5, 0.1])
def test_an_even_angle_is_even(data_std):
    betas = linear_betas(1000)
    kept = respaced_timesteps(betas, "angle20", data_std=data_std)
    ratio = ((1 - cumprod(betas)) / cumprod(betas)).sqrt()[list(kept)]
    gaps = (ratio / data_std).atan().diff()
    assert gaps.max() < 1.2 * gaps.mean()


@pytest.mark.parametrize("respacing", ["x", "25,", "0", "-5", "ddim", "anglex", "1.5", "10 10"])
def test_a_respacing_that_is_no_number_is_refused(respacing):
    with pytest.raises(ConfigError, match="is not understood"):
        respaced_timesteps(linear_betas(100), respacing)


def test_more_steps_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="wants 60 steps of a section that has 50"):
        respaced_timesteps(linear_betas(100), "60,10")
    with pytest.raises(ConfigError, match="no whole stride visits 99 of 100"):
        respaced_timesteps(linear_betas(100), "ddim99")
    with pytest.raises(ConfigError, match="cannot keep 101 of 100"):
        respaced_timesteps(linear_betas(100), "angle101")


@pytest.mark.parametrize("keep", [[], [3, 2], [1, 1], [-1, 2], [5, 100]])
def test_timesteps_out_of_order_or_range_are_refused(keep):
    with pytest.raises(ConfigError, match="must be increasing and within"):
        respaced_betas(linear_betas(100), keep)


def test_an_unknown_schedule_is_refused_by_name():
    with pytest.raises(ConfigError, match="'quadratic' is unknown; it may be linear, cosine"):
        make_betas("quadratic", 100)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [10, 20])
def test_a_linear_chain_too_short_for_its_variances_is_refused(steps):
    with pytest.raises(ConfigError, match="use 21 or more"):
        make_betas("linear", steps)
    assert make_betas("linear", 21).max() < 1
