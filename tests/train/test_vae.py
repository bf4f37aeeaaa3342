"""What a discrete VAE learns from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dalle3.errors import ConfigError
from dalle3.models.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle3.train.tasks.vae import VaeTask, VaeTaskConfig
from dalle3.train.tuning import TuningConfig
from tests.train.conftest import vae


def error(task: VaeTask, images: Tensor) -> Tensor:
    """The loss on pictures, with the same noise at every call."""
    rng = torch.Generator().manual_seed(0)
    return task.objective(images=images, noise=rng, temperature=0.5)[0]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_absolute_error_where_that_is_asked_for(images):
    network = vae()
    _, parts = network.loss(images, torch.Generator().manual_seed(0), temperature=0.5)
    drawn, target = parts["reconstruction"], network.normalise(images)
    squared, absolute = (error(VaeTask(network, VaeTaskConfig(l1_loss=l1)), images) for l1 in (False, True))
    torch.testing.assert_close(squared, F.mse_loss(drawn, target))
    torch.testing.assert_close(absolute, F.l1_loss(drawn, target))


def test_absolute_error_draws_the_median_and_squared_error_the_mean():
    """One code for three pictures, of which two are black and one is white."""
    pictures = torch.tensor([0.0, 0.0, 1.0])[:, None, None, None].expand(3, 3, 4, 4)
    brightness = {}
    for l1_loss in (False, True):
        torch.manual_seed(0)
        network = DiscreteVAE(DiscreteVAEConfig(image_size=4, num_tokens=1, codebook_dim=8, num_layers=2, hidden_dim=8))
        task = VaeTask(network, VaeTaskConfig(l1_loss=l1_loss))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            error(task, pictures).backward()
            optimizer.step()
        brightness[l1_loss] = network.decode(torch.zeros(1, 1, 1, dtype=torch.long)).mean().item()
    assert brightness[False] == pytest.approx(1 / 3, abs=0.03)
    assert brightness[True] == pytest.approx(0, abs=0.03)


def test_the_decoder_alone_learns_to_draw_the_likeliest_codes(images):
    network = vae()
    TuningConfig(train=("decoder", "codebook")).choose(network)
    task = VaeTask(network, VaeTaskConfig(l1_loss=True))
    loss = error(task, images)
    torch.testing.assert_close(loss, F.l1_loss(network.decode_raw(network.encode(images)), network.normalise(images)))
    loss.backward()
    assert all(weights.grad is None for weights in network.encoder.parameters())
    assert network.codebook.weight.grad is not None


def test_two_kinds_of_error_are_refused():
    config = DiscreteVAEConfig(
        image_size=4, num_tokens=2, codebook_dim=4, num_layers=2, hidden_dim=4, smooth_l1_loss=True
    )
    with pytest.raises(ConfigError, match="leave one out"):
        VaeTask(DiscreteVAE(config), VaeTaskConfig(l1_loss=True))
