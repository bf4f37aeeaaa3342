"""The chain, its losses and its samplers against guided-diffusion, on the toy network the fixtures describe."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from diffusion.guidance import clipped
from diffusion.losses import training_losses
from diffusion.process import Prediction, Process, ProcessConfig
from diffusion.samplers import ddim, ddpm, finish
from diffusion.schedule import linear_betas, respaced_timesteps
from diffusion.unet_blocks import timestep_embedding
from tests.diffusion.helpers import golden, relative_error

CHAINS = {
    "cosine_10": "10",
    "cosine_25": "25",
    "cosine_ddim25": "ddim25",
    "cosine_full": "",
    "linear_10": "10",
    "linear_10-10-5": "10,10,5",
    "linear_25": "25",
    "linear_full": "",
}
CONFIGS = {
    "learned_range": ProcessConfig(rescale_timesteps=True),
    "fixed_large": ProcessConfig(rescale_timesteps=True, variance="fixed_large"),
    "fixed_small": ProcessConfig(rescale_timesteps=True, variance="fixed_small"),
    "xstart": ProcessConfig(rescale_timesteps=True, prediction="x0"),
    "norescale": ProcessConfig(),
}
TOLERANCE = 1e-5


EVERY_CASE = [(chain, kind) for chain in CHAINS for kind in CONFIGS]
# The reference did not walk whole chains of 1000 steps, and rescales losses only where the variance is a learned range.
WALKED = [(chain, kind) for chain, kind in EVERY_CASE if CHAINS[chain]]
RESCALED = [(chain, "learned_range") for chain in CHAINS]


@cache
def reference(chain: str) -> dict:
    return golden(f"f_diffusion_{chain}")


def make_process(chain: str, kind: str, *, loss: str = "mse") -> Process:
    config = replace(CONFIGS[kind], noise_schedule=chain.split("_")[0], loss=loss)
    return Process(config, CHAINS[chain])


def load(chain: str, kind: str):
    """A process, the fixture's inputs, and what the reference made of them."""
    return make_process(chain, kind), reference(chain)["inputs"], reference(chain)["outputs"][kind]


def toy_network(process: Process):
    def network(x: Tensor, timesteps: Tensor) -> Tensor:
        t = timesteps.float().reshape(-1, 1, 1, 1)
        predicted = 0.9 * torch.cos(0.01 * t) * x + 0.1
        if not process.config.learned_variance:
            return predicted
        return torch.cat([predicted, torch.tanh(x) * torch.sin(0.02 * t)], dim=1)

    return network


def predict(process: Process, x: Tensor, t: Tensor) -> Prediction:
    return process.prediction(toy_network(process)(x, process.model_timesteps(t, x.device)), x, t)


def clip(prediction: Prediction) -> Prediction:
    return replace(prediction, x0=prediction.x0.clamp(-1, 1))


def toy_gradient(process: Process, x: Tensor, t: int | Tensor) -> Tensor:
    told = process.model_timesteps(t, x.device).float().reshape(-1, 1, 1, 1)
    return (0.3 - x) * 0.7 + 0.001 * told


def guided(process: Process, denoise):
    def wrapper(x: Tensor, t: int) -> Prediction:
        return replace(denoise(x, t), gradient=toy_gradient(process, x, t))

    return wrapper


@pytest.mark.parametrize("chain", CHAINS)
def test_the_tables_are_exact_in_float64(chain):
    process, expected_tables = make_process(chain, "norescale"), reference(chain)["outputs"]
    for key, expected in expected_tables.items():
        if key.startswith("f64/"):
            found = getattr(process, key.removeprefix("f64/"))
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=key)
    assert list(process.timestep_map) == expected_tables["timestep_map"].tolist()


def test_every_respacing_keeps_the_same_timesteps():
    for key, expected in golden("f_space_timesteps_and_temb")["outputs"]["space_timesteps"].items():
        steps, respacing = key.split("|")
        assert list(respaced_timesteps(linear_betas(int(steps)), respacing)) == list(expected), key


def test_timestep_embeddings_are_the_same():
    told = torch.tensor([0.0, 1.0, 500.0, 999.0, 333.333])
    for width, expected in golden("f_space_timesteps_and_temb")["outputs"]["timestep_embedding"].items():
        assert relative_error(timestep_embedding(told, int(width)), expected) < TOLERANCE


@pytest.mark.parametrize(("chain", "kind"), EVERY_CASE)
def test_the_network_is_told_the_same_timesteps(chain, kind):
    process, inputs, expected = load(chain, kind)
    told = process.model_timesteps(inputs["t"], inputs["t"].device)
    assert told.dtype == expected["model_saw_t"].dtype
    assert relative_error(told, expected["model_saw_t"]) < 1e-6


@pytest.mark.parametrize(("chain", "kind"), EVERY_CASE)
def test_noising_and_its_posterior_agree(chain, kind):
    process, inputs, expected = load(chain, kind)
    x0, x, t = inputs["x0"], inputs["x"], inputs["t"]
    assert relative_error(process.q_sample(x0, t, inputs["noise"]), expected["q_sample"]) < TOLERANCE
    mean = process.posterior_mean(x0, x, t)
    assert relative_error(mean, expected["q_posterior_mean"]) < TOLERANCE


@pytest.mark.parametrize("clipping", [True, False])
@pytest.mark.parametrize(("chain", "kind"), EVERY_CASE)
def test_one_prediction_agrees(chain, kind, clipping):
    process, inputs, expected = load(chain, kind)
    x, t = inputs["x"], inputs["t"]
    found = predict(process, x, t)
    found = clip(found) if clipping else found
    prefix = f"pmv_clip{clipping}/"
    assert relative_error(found.x0, expected[prefix + "pred_xstart"]) < TOLERANCE
    assert relative_error(found.variance.expand_as(x), expected[prefix + "variance"]) < TOLERANCE
    assert relative_error(process.posterior_mean(found.x0, x, t), expected[prefix + "mean"]) < TOLERANCE


@pytest.mark.parametrize("guide", ["", "_cond"])
@pytest.mark.parametrize(("chain", "kind"), EVERY_CASE)
def test_one_step_of_each_sampler_agrees(chain, kind, guide):
    process, inputs, expected = load(chain, kind)
    for row, t in enumerate(inputs["t"].tolist()):
        x, noise = inputs["x"][row : row + 1], expected["p_sample_noise_seed21"][row : row + 1]
        denoise = clipped(process.denoiser(toy_network(process)))
        denoise = guided(process, denoise) if guide else denoise
        found = {
            "p_sample": one_step(ddpm, process, denoise, x, t, noise),
            "ddim_sample": one_step(ddim, process, denoise, x, t, noise),
            "ddim_eta1": one_step(ddim, process, denoise, x, t, noise, eta=1.0),
        }
        for name, sample in found.items():
            assert relative_error(sample, expected[name + guide][row : row + 1]) < TOLERANCE, (name, t)


def one_step(sampler, process, denoise, x, t, noise, **options):
    """What `sampler` makes of x in the step at t: it starts there, because its chain ends there."""
    shorter = Process(process.config, process.timestep_map[: t + 1])

    def same(x: Tensor, step: int) -> Prediction:
        return denoise(x, step)

    return next(sampler(same, x, process=shorter, noise=lambda like: noise, **options)).x


LOOPS = {
    "p_sample_loop_seed31": (ddpm, True, False),
    "p_sample_loop_cond_noclip_seed31": (ddpm, False, True),
    "ddim_loop_seed31": (ddim, True, False),
    "ddim_loop_cond_seed31": (ddim, True, True),
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("chain", "kind"), WALKED)
def test_whole_loops_agree(chain, kind, loop):
    process, _, expected = load(chain, kind)
    sampler, clipping, guide = LOOPS[loop]
    denoise = process.denoiser(toy_network(process))
    denoise = clipped(denoise) if clipping else denoise
    denoise = guided(process, denoise) if guide else denoise
    first, *rest = expected["loop_noises_seed31"]
    draws = iter(rest)
    sample = finish(sampler(denoise, first, process=process, noise=lambda like: next(draws)))
    assert relative_error(sample, expected[loop]) < 3e-5


@pytest.mark.parametrize(("chain", "kind"), EVERY_CASE)
def test_training_losses_agree(chain, kind):
    check_losses(chain, kind, loss="mse", key="training_losses")


@pytest.mark.parametrize(("chain", "kind"), RESCALED)
@pytest.mark.parametrize(("loss", "key"), [("rescaled_mse", "rescaled_mse"), ("rescaled_kl", "kl")])
def test_rescaled_losses_agree(chain, kind, loss, key):
    check_losses(chain, kind, loss=loss, key=f"training_losses_{key}")


def check_losses(chain, kind, *, loss, key):
    _, inputs, expected = load(chain, kind)
    process = make_process(chain, kind, loss=loss)
    found = training_losses(process, toy_network(process), x0=inputs["x0"], t=inputs["t"], noise=inputs["noise"])
    terms = {name.removeprefix(key + "/") for name in expected if name.startswith(key + "/")}
    assert found.keys() == terms
    for term, value in found.items():
        # Each picture on its own: at high noise the bound is millions of times larger than at low noise.
        torch.testing.assert_close(value, expected[f"{key}/{term}"], rtol=1e-4, atol=1e-6, msg=term)
