"""Filters, guidance and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dalle3.errors import ConfigError
from dalle3.sampling import Noise, Recommended, Sampling, SamplingChoice, draw, guide, keep_likeliest
from tests.golden import golden

LOGITS = arrays(np.float32, (3, 11), elements=st.floats(-9, 9, width=32))


@given(logits=LOGITS, top_p=st.floats(0.05, 0.999))
def test_top_p_keeps_the_smallest_set_that_exceeds_p(logits, top_p):
    logits = torch.from_numpy(logits)
    kept = keep_likeliest(logits, 11, top_p)
    probabilities = logits.double().softmax(-1)
    for row, mass in zip(kept, probabilities, strict=True):
        inside = mass[row.isfinite()]
        assert inside.sum() > top_p - 1e-6 or len(inside) == 11
        assert inside.sum() - inside.min() <= top_p + 1e-6


@given(logits=LOGITS, count=st.integers(1, 11))
def test_top_k_keeps_exactly_the_largest(logits, count):
    logits = torch.from_numpy(logits)
    kept = keep_likeliest(logits, count)
    assert (kept.isfinite().sum(-1) == count).all()
    lost = torch.where(kept.isfinite(), -torch.inf, logits).amax(-1)
    assert (torch.where(kept.isfinite(), logits, torch.inf).amin(-1) >= lost).all()


@given(logits=LOGITS, count=st.integers(2, 11), top_p=st.floats(0.1, 0.9))
def test_top_p_counts_what_top_k_left_as_all_there_is(logits, count, top_p):
    logits = torch.from_numpy(logits)
    both = keep_likeliest(logits, count, top_p)
    first = keep_likeliest(logits, count)
    for ours, row in zip(both, first, strict=True):
        alone = keep_likeliest(row[row.isfinite()][None], count, top_p)
        assert torch.equal(ours[row.isfinite()], alone[0])


@pytest.mark.parametrize("what", ["normal", "ties", "extreme", "peaked", "flat", "small_gap"])
def test_filters_keep_what_the_originals_keep(what):
    reference = golden("e_filters")
    logits = reference["inputs"][what]
    for name, expected in reference["outputs"].items():
        kind, which, threshold = name.split("/")
        if which != what:
            continue
        threshold, size = float(threshold), logits.shape[-1]
        if kind == "top_k":
            ours = keep_likeliest(logits, max(int((1 - threshold) * size), 1))
        else:
            ours = keep_likeliest(logits, size, threshold)
        assert torch.equal(ours.sort(-1).values, expected.sort(-1).values), name


def test_a_fractional_top_k_counts_text_ids_too():
    assert Sampling(top_k=0.9).count(num_tokens=18448, num_codes=8192) == 1844
    assert Sampling(top_k=0.1).count(num_tokens=18448, num_codes=8192) == 8192
    assert Sampling(top_k=100).count(num_tokens=18448, num_codes=8192) == 100
    assert Sampling().count(num_tokens=18448, num_codes=8192) == 8192


def test_draws_follow_the_softmax_of_logits_over_temperature():
    logits, draws = torch.tensor([1.0, 0.0, -1.0, 2.0]), 4000
    noise = Noise([0], "image", range(draws), 4)
    codes = draw(logits.expand(draws, -1), Sampling(temperature=1.7), noise, num_tokens=4)
    frequencies = codes.bincount(minlength=4) / draws
    expected = (logits / 1.7).softmax(0)
    assert ((frequencies - expected).abs() < 4 * (expected * (1 - expected) / draws).sqrt()).all()


def test_no_temperature_is_the_likeliest_code():
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    codes = draw(logits, Sampling(temperature=0), Noise([0], "image", range(5), 30), num_tokens=30)
    assert torch.equal(codes, logits.argmax(-1))


def test_noise_of_an_image_depends_on_nothing_but_seed_and_index():
    several, alone = Noise([7], "image", [3, 8, 5], 100), Noise([7], "image", [8], 100)
    for _ in range(3):
        assert torch.equal(several.gumbel()[1], alone.gumbel()[0])


def test_noise_is_standard_gumbel():
    noise = Noise([0], "image", [0], 200_000).gumbel()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(np.pi**2 / 6, abs=0.03)


def test_guidance_goes_from_the_empty_caption_past_the_caption():
    cond, null = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert torch.equal(guide(torch.cat([cond, null]), 3.0), torch.tensor([[4.0, -2.0]]))
    assert torch.equal(guide(torch.cat([cond, null]), 1.0), cond)


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ({}, {"top_p": 0.95, "temperature": 0.8, "cond_scale": 3.0}),
        ({"cond_scale": 1.0}, {"top_p": 0.95, "temperature": 0.8, "cond_scale": 1.0}),
        ({"top_p": 0.5}, {"top_p": 0.5, "temperature": 0.8, "cond_scale": 3.0}),
        ({"top_k": 5.0}, {"top_k": 5.0, "temperature": 0.8, "cond_scale": 3.0}),
    ],
)
def test_what_is_asked_for_goes_before_what_the_model_recommends(asked, used):
    own = Recommended(top_p=0.95, temperature=0.8, cond_scale=3.0)
    assert SamplingChoice(**asked).settled(own) == Sampling(**used)


def test_a_top_p_that_is_asked_for_leaves_out_a_recommended_top_k():
    assert SamplingChoice(top_p=0.5).settled(Recommended(top_k=9.0)).top_k is None
    assert SamplingChoice().settled(Recommended(top_k=9.0)) == Sampling(top_k=9.0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -1.0}, "top_k is -1.0; it must be a fraction between 0 and 1 or a whole number"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"temperature": -1.0}, "temperature is -1.0; it must be 0 or more"),
    ],
)
def test_impossible_settings_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**flags)
