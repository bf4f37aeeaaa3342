"""The patch discriminator and the losses around it against taming-transformers, on the same weights.

The file was made by taming_transformers_rom1504 0.0.6: `NLayerDiscriminator(ndf=4, n_layers=2)`, its
`calculate_adaptive_weight` (weight 0.8) at a 3x3 convolution, and `hinge_d_loss`.
"""

from __future__ import annotations

import pytest
import torch

from dalle3.models.discriminator import DiscriminatorConfig, PatchDiscriminator
from dalle3.train.tasks.vqgan import adaptive_weight, hinge_loss
from tests.golden import golden, relative_error


@pytest.fixture
def reference():
    return golden("taming_adversary")


@pytest.fixture
def discriminator(reference):
    found = PatchDiscriminator(DiscriminatorConfig(disc_ndf=4, disc_num_layers=2))
    found.load_state_dict(reference["state"])
    return found.train()


def test_the_generators_loss_and_gradient_are_tamings(reference, discriminator):
    last = torch.nn.Conv2d(4, 3, 3, padding=1)
    last.load_state_dict(reference["last"])
    fake = last(reference["x"])
    likeness, wish = (reference["images"] - fake).abs().mean(), -discriminator(fake).mean()
    weight = 0.8 * adaptive_weight(likeness, wish, last.weight)
    loss = likeness + weight * wish
    (gradient,) = torch.autograd.grad(loss, last.weight)
    assert relative_error(weight, reference["weight"]) < 1e-5
    assert relative_error(loss, reference["loss"]) < 1e-5
    assert relative_error(gradient, reference["grad"]) < 1e-5


def test_the_discriminators_loss_and_gradients_are_tamings(reference, discriminator):
    last = torch.nn.Conv2d(4, 3, 3, padding=1)
    last.load_state_dict(reference["last"])
    real, fake = discriminator(reference["images"]), discriminator(last(reference["x"]).detach())
    loss = hinge_loss(real, fake)
    loss.backward()
    assert relative_error(real, reference["real"]) < 1e-5
    assert relative_error(loss, reference["disc_loss"]) < 1e-5
    for name, weights in discriminator.named_parameters():
        torch.testing.assert_close(weights.grad, reference["disc_grads"][name], rtol=1e-5, atol=1e-7)
