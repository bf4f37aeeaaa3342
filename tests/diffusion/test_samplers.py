"""Samplers, on data whose denoiser is known exactly: every pixel an independent mixture of two Gaussians."""

from __future__ import annotations

from functools import partial
from itertools import islice, pairwise

import pytest
import torch
from torch import Tensor

from diffusion.process import Prediction, Process, ProcessConfig, at
from diffusion.samplers import SAMPLERS, ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, finish, heun, per_image_noise

MEANS = torch.tensor([-0.6, 0.5], dtype=torch.float64)
STDS = torch.tensor([0.2, 0.35], dtype=torch.float64)
SHARES = torch.tensor([0.4, 0.6], dtype=torch.float64)
MEAN = (SHARES * MEANS).sum().item()
STD = ((SHARES * (STDS**2 + MEANS**2)).sum().item() - MEAN**2) ** 0.5


def mixture(process: Process):
    """The exact denoiser of the mixture."""

    def denoise(x: Tensor, t: int) -> Prediction:
        power = process.alphas_cumprod[t]
        variances = power * STDS**2 + 1 - power
        away = x[..., None] - power.sqrt() * MEANS
        likelihoods = SHARES.log() - variances.log() / 2 - away**2 / (2 * variances)
        x0 = (likelihoods.softmax(-1) * (MEANS + power.sqrt() * STDS**2 / variances * away)).sum(-1)
        return Prediction(x0, at(process.posterior_variance, t, x))

    return denoise


def make_process(schedule: str, respacing: str = "", *, steps: int = 1000) -> Process:
    return Process(ProcessConfig(noise_schedule=schedule, diffusion_steps=steps), respacing)


def start(batch: int = 1, size: int = 32) -> Tensor:
    return torch.randn(batch, 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def sample(sampler, process: Process, x: Tensor) -> Tensor:
    rngs = [torch.Generator().manual_seed(index) for index in range(len(x))]
    return finish(sampler(mixture(process), x, process=process, noise=per_image_noise(rngs)))


def errors(sampler, schedule: str, respacings: list[str]) -> list[float]:
    """The mean error at each respacing, against a thousand steps of Heun's method."""
    x = start()
    reference = sample(heun, make_process(schedule), x)
    return [(sample(sampler, make_process(schedule, spec), x) - reference).abs().mean().item() for spec in respacings]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (heun, 2), (dpmpp_2m, 2)])
def test_the_error_falls_with_the_order_of_the_sampler(sampler, order, schedule):
    found = errors(sampler, schedule, ["16", "32", "64"])
    for coarse, fine in pairwise(found):
        assert coarse / fine > 2 ** (order - 0.65), found


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("sampler", "bound"), [(ddim, 0.08), (heun, 0.005), (dpmpp_2m, 0.03)])
def test_ten_steps_of_even_angle_are_enough_for_these_errors(sampler, bound, schedule):
    (found,) = errors(sampler, schedule, ["angle10"])
    assert found < bound


def test_an_even_angle_is_ten_times_better_than_an_even_spacing_for_dpmpp_2m():
    even, angle = errors(dpmpp_2m, "linear", ["10", "angle10"])
    assert angle * 10 < even


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    "sampler", [ddpm, dpmpp_2m_sde, partial(ddim, eta=1.0)], ids=["ddpm", "dpmpp_2m_sde", "ddim_eta1"]
)
def test_random_samplers_reproduce_the_distribution(sampler, schedule):
    drawn = sample(sampler, make_process(schedule, "250"), start(size=128))
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert drawn.std().item() == pytest.approx(STD, rel=0.03)
    assert (drawn < 0).double().mean().item() == pytest.approx(0.44, abs=0.02)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_does_not_depend_on_its_batch(name):
    process, x = make_process("linear", "10"), start(batch=3, size=8)
    noises = [per_image_noise([torch.Generator().manual_seed(index)]) for index in range(3)]
    together = sample(SAMPLERS[name], process, x)
    for index, noise in enumerate(noises):
        alone = finish(SAMPLERS[name](mixture(process), x[index : index + 1], process=process, noise=noise))
        assert torch.equal(together[index : index + 1], alone)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_reports_its_place_and_a_preview(name):
    process, x = make_process("cosine", "7"), start(size=8)
    noise = per_image_noise([torch.Generator().manual_seed(0)])
    steps = list(SAMPLERS[name](mixture(process), x, process=process, noise=noise))
    assert [step.done for step in steps] == list(range(1, 8))
    assert {step.total for step in steps} == {7}
    assert all(step.x0.shape == x.shape for step in steps)
    torch.testing.assert_close(steps[-1].x, steps[-1].x0, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_stopped_early_has_asked_for_no_more_than_it_gave(name):
    process, calls = make_process("linear", "20"), []

    def counting(x: Tensor, t: int) -> Prediction:
        calls.append(t)
        return mixture(process)(x, t)

    noise = per_image_noise([torch.Generator().manual_seed(0)])
    list(islice(SAMPLERS[name](counting, start(size=4), process=process, noise=noise), 3))
    assert len(calls) == (6 if name == "heun" else 3)


def test_eta_zero_makes_the_stochastic_solver_the_deterministic_one():
    process, x = make_process("linear", "12"), start()
    assert torch.equal(sample(partial(dpmpp_2m_sde, eta=0.0), process, x), sample(dpmpp_2m, process, x))


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_gives_the_expected_picture(name):
    process, x = make_process("linear", "1"), start()
    torch.testing.assert_close(sample(SAMPLERS[name], process, x), mixture(process)(x, 0).x0, rtol=0, atol=1e-5)
