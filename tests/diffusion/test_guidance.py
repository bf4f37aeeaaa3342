"""Guidance, on denoisers known in closed form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diffusion.errors import DiffusionError, ShapeError
from diffusion.guidance import (
    Cutouts,
    PromptLoss,
    bounded,
    classifier_free,
    clipped,
    exact_gradient,
    fast_gradient,
    normalised_weights,
)
from diffusion.process import Denoiser, Prediction, Process, ProcessConfig, at
from diffusion.samplers import SAMPLERS, finish, per_image_noise

DATA_STD = 0.5


@pytest.fixture(scope="module")
def process():
    return Process(ProcessConfig(), "25")


def gaussian(process: Process) -> Denoiser:
    """The exact denoiser of pixels from N(0, DATA_STD^2)."""

    def denoise(x: Tensor, t: int) -> Prediction:
        power = process.alphas_cumprod[t].item()
        x0 = x * (power**0.5 * DATA_STD**2 / (power * DATA_STD**2 + 1 - power))
        return Prediction(x0, at(process.posterior_variance, t, x))

    return denoise


def brightness(x0: Tensor, x: Tensor, t: int) -> Tensor:
    """A loss that wants pixels of 0.8."""
    return 4 * (x0 - 0.8).square().sum(dim=(1, 2, 3))


def noise_like(batch: int, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(5))


def walk(name: str, denoise: Denoiser, process: Process, x: Tensor) -> Tensor:
    rngs = [torch.Generator().manual_seed(index) for index in range(len(x))]
    return finish(SAMPLERS[name](denoise, x, process=process, noise=per_image_noise(rngs)))


@pytest.mark.parametrize("form", ["exact", "fast"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_moves_every_sampler_towards_what_it_is_told(name, form, process):
    denoise, x = gaussian(process), noise_like(2)
    forms = {
        "exact": exact_gradient(denoise, brightness),
        "fast": fast_gradient(denoise, brightness, process=process),
    }
    guided = walk(name, forms[form], process, x)
    assert guided.isfinite().all()
    assert (guided - 0.8).abs().mean() < 0.7 * (walk(name, denoise, process, x) - 0.8).abs().mean()


@pytest.mark.parametrize("t", [0, 12, 24])
def test_the_fast_gradient_is_the_exact_one_for_normal_data(t, process):
    x = noise_like(2)
    exact = exact_gradient(gaussian(process), brightness)(x, t)
    fast = fast_gradient(gaussian(process), brightness, process=process, data_std=DATA_STD)(x, t)
    torch.testing.assert_close(fast.gradient, exact.gradient, rtol=1e-5, atol=1e-6)
    assert torch.equal(fast.x0, exact.x0)


def test_the_exact_gradient_needs_no_gradients_of_parameters(process):
    layer = nn.Conv2d(3, 6, 3, padding=1).requires_grad_(False)
    denoise = process.denoiser(lambda x, timesteps: layer(x))
    with torch.no_grad():
        prediction = exact_gradient(denoise, brightness)(noise_like(1), 3)
    assert prediction.gradient is not None
    assert prediction.gradient.abs().max() > 0
    assert not prediction.x0.requires_grad
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_gradients_add_up(process):
    x = noise_like(1)
    once = exact_gradient(gaussian(process), brightness)
    twice = fast_gradient(once, brightness, process=process, data_std=DATA_STD)
    torch.testing.assert_close(twice(x, 3).gradient, 2 * once(x, 3).gradient)


def test_bounded_guidance_moves_x0_by_no_more_than_the_limit(process):
    x = noise_like(2)
    strong = exact_gradient(gaussian(process), lambda x0, x, t: 1e4 * brightness(x0, x, t))
    plain, held = gaussian(process)(x, 20), bounded(strong, process=process, limit=0.1)(x, 20)
    moved = (held.x0 - plain.x0).square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(moved, torch.full((2,), 0.1))
    assert held.gradient is None


def test_bounded_leaves_weak_guidance_as_it_is(process):
    x = noise_like(2)
    weak = exact_gradient(gaussian(process), lambda x0, x, t: 1e-4 * brightness(x0, x, t))
    held = bounded(weak, process=process, limit=0.5)(x, 10)
    torch.testing.assert_close(held.x0, process.guided_x0(weak(x, 10), 10))


def halves(x: Tensor, t: int) -> Prediction:
    """Predicts 1 where it is told the condition, in the first half of the batch, and 0.25 where it is not."""
    count = len(x) // 2
    levels = torch.cat([torch.full((count,), 1.0), torch.full((count,), 0.25)]).reshape(-1, 1, 1, 1)
    return Prediction(levels.expand_as(x), levels.expand_as(x))


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 0.25), (1.0, 1.0), (3.0, 2.5)])
def test_classifier_free_guidance_extrapolates_from_no_condition(scale, expected):
    prediction = classifier_free(halves, scale)(noise_like(2), 0)
    torch.testing.assert_close(prediction.x0, torch.full((2, 3, 8, 8), expected))
    assert torch.equal(prediction.variance, torch.ones(2, 3, 8, 8))


def test_clipping_after_guidance_holds_the_range():
    assert clipped(classifier_free(halves, 3.0))(noise_like(1), 0).x0.max() == 1


def prompt_loss(process: Process, rngs: list[torch.Generator], **changes) -> PromptLoss:
    targets = torch.eye(3)[:2]
    loss = PromptLoss(
        process=process,
        cutouts=Cutouts(cutn=4, cut_size=4, rngs=rngs),
        embed_image=lambda pixels: pixels.mean(dim=(2, 3)),
        targets=targets,
        weights=normalised_weights([1, 1]),
    )
    return replace(loss, **changes)


def test_a_picture_and_its_cutouts_do_not_depend_on_the_batch(process):
    def run(indices: list[int]) -> Tensor:
        rngs = [torch.Generator().manual_seed(100 + index) for index in indices]
        guided = fast_gradient(gaussian(process), prompt_loss(process, rngs), process=process)
        return finish(
            SAMPLERS["ddpm"](
                guided,
                noise_like(3)[indices],
                process=process,
                noise=per_image_noise([torch.Generator().manual_seed(index) for index in indices]),
            )
        )

    together = run([0, 1, 2])
    for index in range(3):
        torch.testing.assert_close(run([index])[0], together[index], rtol=0, atol=1e-5)


def test_weights_tell_which_prompt_counts(process):
    red, green = noise_like(1), noise_like(1)
    red[:, 1:] -= 4
    green[:, ::2] -= 4
    rngs = [torch.Generator().manual_seed(0)]
    for weights, nearer, farther in (([1, 0], red, green), ([0, 1], green, red)):
        loss = prompt_loss(process, rngs, weights=normalised_weights(weights))
        assert loss.distances(nearer) < loss.distances(farther)


def test_weights_are_divided_by_the_magnitude_of_their_sum():
    torch.testing.assert_close(normalised_weights([3, 1]), torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(normalised_weights([-3, 1]), torch.tensor([-1.5, 0.5]))


@pytest.mark.parametrize("weights", [[1, -1], [0], [], [0.5, 0.25, -0.75]])
def test_weights_that_sum_to_zero_are_refused(weights):
    with pytest.raises(DiffusionError, match="sum to zero"):
        normalised_weights(weights)


@pytest.mark.parametrize(("height", "width"), [(64, 40), (16, 16), (8, 24)])
def test_cutouts_have_one_size_whatever_the_picture(height, width):
    cutouts = Cutouts(cutn=5, cut_size=16, rngs=[torch.Generator().manual_seed(0)])
    assert cutouts(torch.zeros(2, 3, height, width)).shape == (5, 2, 3, 16, 16)


def test_cutouts_refuse_a_number_of_generators_that_fits_nothing():
    cutouts = Cutouts(cutn=2, cut_size=4, rngs=[torch.Generator() for _ in range(2)])
    with pytest.raises(ShapeError, match="3 pictures need 3 generators, or one, found 2"):
        cutouts(torch.zeros(3, 3, 8, 8))
