"""The chain's arithmetic and the likelihoods, beyond what the golden fixtures hold."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusion.errors import ConfigError
from diffusion.losses import bits_per_dimension, normal_kl, pixel_log_likelihood, prior_bits, training_losses
from diffusion.process import Prediction, Process, ProcessConfig


def pictures(count: int = 3) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 4, 4, generator=rng) * 2 - 1, torch.randn(count, 3, 4, 4, generator=rng)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_a_perfect_prediction_of_any_kind_gives_the_clean_picture(prediction):
    process = Process(ProcessConfig(prediction=prediction, variance="fixed_small"))
    x0, noise = pictures()
    t = torch.tensor([0, 400, 900])
    x = process.q_sample(x0, t, noise)
    outputs = {"epsilon": noise, "x0": x0, "v": process.v_from_x0(x0, t, noise)}
    found = process.prediction(outputs[prediction], x, t)
    torch.testing.assert_close(found.x0, x0, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_a_perfect_prediction_has_no_loss(prediction):
    process = Process(ProcessConfig(prediction=prediction, variance="fixed_large"))
    x0, noise = pictures()
    t = torch.tensor([0, 400, 900])
    outputs = {"epsilon": noise, "x0": x0, "v": process.v_from_x0(x0, t, noise)}
    losses = training_losses(process, lambda x, timesteps: outputs[prediction], x0=x0, t=t, noise=noise)
    assert losses["loss"].max() < 1e-9


def test_absolute_errors_are_least_at_the_median_and_squared_ones_at_the_mean():
    """Of pixels that are dark in three pictures and bright in one, what a network puts out that cannot know which."""
    x0, t = torch.tensor([-1.0, -1, -1, 1]).view(4, 1, 1, 1), torch.full((4,), 900)
    best = {}
    for loss in ("l1", "mse"):
        process = Process(ProcessConfig(prediction="x0", variance="fixed_small", loss=loss))

        def error(guess: float, process: Process = process) -> float:
            output = torch.full_like(x0, guess)
            return training_losses(process, lambda x, t: output, x0=x0, t=t, noise=x0)["loss"].mean().item()

        best[loss] = min((guess / 10 for guess in range(-10, 11)), key=error)
    assert best == {"l1": -1, "mse": -0.5}


def test_epsilon_and_x0_are_inverse():
    process, (x0, noise), t = Process(ProcessConfig()), pictures(), torch.tensor([3, 500, 999])
    x = process.q_sample(x0, t, noise)
    torch.testing.assert_close(process.epsilon_from_x0(x, t, x0), noise, rtol=0, atol=1e-4)


def test_one_step_for_all_is_that_step_for_each():
    process, (x0, noise) = Process(ProcessConfig(), "25"), pictures()
    assert torch.equal(process.q_sample(x0, 7, noise), process.q_sample(x0, torch.full((3,), 7), noise))
    assert process.model_timesteps(7, torch.device("cpu")).tolist() == [291]


def test_timesteps_are_told_as_if_the_chain_had_1000_steps():
    process = Process(ProcessConfig(diffusion_steps=4000, rescale_timesteps=True))
    assert process.model_timesteps(3999, torch.device("cpu")).item() == pytest.approx(999.75)


def test_a_learned_log_variance_is_taken_as_it_is():
    process, (x0, values) = Process(ProcessConfig(variance="learned")), pictures()
    found = process.prediction(torch.cat([x0, values], dim=1), x0, 5)
    torch.testing.assert_close(found.variance, values.exp())


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_the_bound_trains_the_variance_and_leaves_the_mean_alone(loss):
    process, (x0, noise) = Process(ProcessConfig(loss=loss)), pictures()
    predicted, values = noise.clone().requires_grad_(), torch.zeros_like(noise, requires_grad=True)
    both = torch.cat([predicted, values], dim=1)
    losses = training_losses(process, lambda x, t: both, x0=x0, t=torch.tensor([1, 500, 900]), noise=noise)
    losses["vb"].sum().backward()
    assert values.grad is not None
    assert values.grad.abs().max() > 0
    assert predicted.grad is None or not predicted.grad.any()


def test_guidance_moves_x0_by_the_score():
    process, (x0, gradient) = Process(ProcessConfig(), "25"), pictures()
    power = process.alphas_cumprod[10].item()
    found = process.guided_x0(Prediction(x0, torch.ones(1), gradient), 10)
    torch.testing.assert_close(found, x0 + (1 - power) / power**0.5 * gradient)


def test_probabilities_of_all_pixel_values_sum_to_one():
    values = torch.linspace(-1, 1, 256)
    for mean, scale in ((0.0, 0.3), (0.9, 0.05), (-1.2, 1.0)):
        logs = pixel_log_likelihood(values, torch.tensor(mean), torch.tensor(math.log(scale)))
        assert logs.exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_the_divergence_of_a_distribution_from_itself_is_nothing():
    mean, log_variance = pictures()
    assert not normal_kl(mean, log_variance, mean, log_variance).any()


def test_little_is_left_of_a_picture_at_the_end_of_the_chain():
    x0, _ = pictures()
    assert (prior_bits(Process(ProcessConfig()), x0) < 1e-4).all()


def test_knowing_more_costs_fewer_bits():
    x0, _ = pictures()
    process = Process(ProcessConfig(prediction="x0", variance="fixed_small"), "20")
    rng = torch.Generator().manual_seed(0)
    exact = bits_per_dimension(process, lambda x, timesteps: x0, x0=x0, rng=rng)
    blind = bits_per_dimension(process, lambda x, timesteps: torch.zeros_like(x), x0=x0, rng=rng)
    assert (exact < blind).all()
    assert (exact < 8).all()


def test_a_network_with_another_number_of_channels_is_refused():
    x0, _ = pictures()
    with pytest.raises(ConfigError, match="puts out 3 channels, but variance='learned_range' needs 6"):
        Process(ProcessConfig()).prediction(x0, x0, 5)
