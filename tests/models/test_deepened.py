"""A DALLE that gets more layers is what it was until they learn."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dalle3.errors import ConfigError
from dalle3.models.dalle import Dalle, DalleConfig, deepened

CONFIG = DalleConfig(
    num_text_tokens=12, text_seq_len=6, num_image_tokens=16, image_grid=4, dim=32, depth=2, heads=2, dim_head=16
)
TEXT, CODES = torch.tensor([[7, 3, 7, 0, 0, 0]]), torch.arange(16)[None]
KINDS = [
    {},
    {"reversible": True},
    {"sandwich_norm": True, "stable_softmax": True},
    {"attn_types": ("axial_row", "full", "conv_like")},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [3, 4, 7])
def test_it_says_the_same_and_every_new_layer_can_learn(kind, depth):
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, **kind)
    small, large = Dalle(config), Dalle(dataclasses.replace(config, depth=depth))
    large.load_state_dict(deepened(large.config, small.state_dict()))
    torch.testing.assert_close(large(TEXT, CODES), small(TEXT, CODES))
    large.loss(TEXT, CODES)[0].backward()
    gradients = [branch.scale.grad for layer in large.transformer.layers for branch in layer]
    assert len(gradients) == 2 * depth
    assert all(gradient.any() for gradient in gradients)


def test_new_layers_are_the_last_ones_in_their_order():
    state = Dalle(CONFIG).state_dict()
    grown = deepened(dataclasses.replace(CONFIG, depth=5), state)
    for new, old in ((2, 1), (3, 0), (4, 1)):
        name = "transformer.layers.{}.1.fn.down.weight"
        assert torch.equal(grown[name.format(new)], state[name.format(old)])


def test_as_deep_as_before_is_the_same():
    state = Dalle(CONFIG).state_dict()
    assert deepened(CONFIG, state) is state


def test_layers_that_share_weights_cannot_be_added():
    config = dataclasses.replace(CONFIG, shared_attn_ids=(0, 1))
    with pytest.raises(ConfigError, match="share weights"):
        deepened(dataclasses.replace(config, depth=3), Dalle(config).state_dict())
