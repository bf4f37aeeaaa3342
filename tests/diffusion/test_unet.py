"""The UNets by themselves: sizes, conditions, number formats, errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dalle3.config import from_dict, to_dict
from diffusion.errors import ConfigError, ShapeError
from diffusion.process import ProcessConfig
from diffusion.unet import SuperResUNet, UNet, UNetConfig
from diffusion.unet_blocks import Norm
from tests.diffusion.helpers import relative_error

TINY = UNetConfig(num_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(32,), num_heads=2)
CONDITIONED = replace(TINY, emb_input_dims=8, emb_output_dims=32, null_embedding=True)


def make(config: UNetConfig, kind: type[UNet] = UNet) -> UNet:
    """A network whose zero-initialised layers are filled, so that nothing hides behind zeros."""
    torch.manual_seed(0)
    network = kind(config)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return network.eval().requires_grad_(False)


def inputs(height: int = 8, width: int = 8, *, batch: int = 2):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, height, width, generator=rng), torch.randn(batch, 8, height, width, generator=rng)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 6), (2, 4)])
def test_any_multiple_of_the_stride_is_taken(height, width):
    x, embeddings = inputs(height, width)
    network = make(CONDITIONED)
    assert network.stride == 2
    assert network(x, torch.tensor([5.0]), embeddings=embeddings).shape == (2, 6, height, width)


@pytest.mark.parametrize(
    "config", [TINY, replace(TINY, use_scale_shift_norm=False), replace(TINY, resblock_updown=True)]
)
def test_one_timestep_for_all_is_the_same_timestep_for_each(config):
    x, _ = inputs()
    network = make(config)
    shared = network(x, torch.tensor([400.0]))
    assert relative_error(shared, network(x, torch.tensor([400.0, 400.0]))) < 5e-6


def test_channels_last_and_a_batch_change_nothing_but_rounding():
    x, embeddings = inputs()
    network, told = make(CONDITIONED), torch.tensor([5.0])
    together = network(x, told, embeddings=embeddings)
    assert relative_error(network(x[:1], told, embeddings=embeddings[:1]), together[:1]) < 5e-6
    network.to(memory_format=torch.channels_last)
    assert relative_error(network(x, told, embeddings=embeddings), together) < 5e-6


def test_bfloat16_keeps_norms_and_output_in_float32_and_comes_close():
    x, embeddings = inputs(16, 16)
    told = torch.tensor([5.0])
    exact = make(CONDITIONED)(x, told, embeddings=embeddings)
    network = make(CONDITIONED).cast(torch.bfloat16)
    found = network(x, told, embeddings=embeddings)
    assert found.dtype == torch.float32
    assert 1e-5 < relative_error(found, exact) < 0.03
    assert {parameter.dtype for parameter in network.input_blocks[1][0].in_layers[2].parameters()} == {torch.bfloat16}
    norms = [module for module in network.modules() if isinstance(module, Norm)]
    assert {norm.weight.dtype for norm in norms} == {torch.float32}
    assert network.time_embed[0].weight.dtype == torch.float32


def test_a_null_embedding_stands_for_no_condition():
    x, embeddings = inputs()
    network, told = make(CONDITIONED), torch.tensor([5.0])
    null = network.null_embeddings(embeddings)
    assert null.shape == embeddings.shape
    assert (null == null[:1, :, :1, :1]).all()
    assert relative_error(network(x, told, embeddings=null), network(x, told, embeddings=embeddings)) > 1e-4
    with pytest.raises(ShapeError, match="no null embedding"):
        make(replace(CONDITIONED, null_embedding=False)).null_embeddings(embeddings)


def test_labels_change_each_picture_for_itself():
    x, _ = inputs()
    network, told = make(replace(TINY, num_classes=4)), torch.tensor([5.0])
    both = network(x, told, labels=torch.tensor([1, 3]))
    alone = network(x[1:], told, labels=torch.tensor([3]))
    assert relative_error(both[1:], alone) < 5e-6


def test_an_upsampler_sees_the_small_picture():
    x, _ = inputs(16, 16)
    network, told = make(TINY, SuperResUNet), torch.tensor([5.0])
    small = torch.zeros(2, 3, 4, 4)
    assert network(x, told, low_res=small).shape == (2, 6, 16, 16)
    assert relative_error(network(x, told, low_res=small + 1), network(x, told, low_res=small)) > 1e-3


def test_a_conditioned_network_can_see_a_second_picture():
    x, embeddings = inputs()
    network, told = make(replace(CONDITIONED, low_res=True)), torch.tensor([5.0])
    given = {"embeddings": embeddings, "low_res": torch.zeros(2, 3, 4, 4)}
    seen = network(x, told, **{**given, "low_res": torch.ones(2, 3, 4, 4)})
    assert relative_error(seen, network(x, told, **given)) > 1e-3
    assert relative_error(network(x, told, **{**given, "embeddings": embeddings + 1}), network(x, told, **given)) > 1e-4
    with pytest.raises(ShapeError, match="sees a second picture: low_res must fit"):
        network(x, told, embeddings=embeddings)


def test_an_untrained_network_predicts_nothing():
    x, _ = inputs()
    assert not UNet(TINY)(x, torch.tensor([5.0])).any()


def test_checkpointing_reaches_inputs_through_frozen_weights():
    x, embeddings = inputs()
    slopes = []
    for use_checkpoint in (False, True):
        network = make(replace(CONDITIONED, use_checkpoint=use_checkpoint))
        leaf = x.clone().requires_grad_()
        network(leaf, torch.tensor([5.0]), embeddings=embeddings).square().sum().backward()
        slopes.append(leaf.grad)
    assert relative_error(slopes[1], slopes[0]) < 1e-6


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (TINY, {"x": torch.zeros(2, 3, 7, 8)}, "8x7 pixels do not fit: both must be multiples of 2"),
        (TINY, {"x": torch.zeros(2, 4, 8, 8)}, "pictures have 4 channels; this network takes 3"),
        (TINY, {"embeddings": torch.zeros(2, 8, 8, 8)}, "takes no embedding map"),
        (TINY, {"labels": torch.zeros(2, dtype=torch.long)}, "has no classes"),
        (TINY, {"low_res": torch.zeros(2, 3, 4, 4)}, "sees no second picture"),
        (CONDITIONED, {}, "takes an embedding map"),
        (
            CONDITIONED,
            {"embeddings": torch.zeros(2, 8, 4, 4)},
            r"is \(2, 8, 4, 4\); pictures of 8x8 need \(2, 8, 8, 8\)",
        ),
        (
            CONDITIONED,
            {"embeddings": torch.zeros(2, 9, 8, 8)},
            r"is \(2, 9, 8, 8\); pictures of 8x8 need \(2, 8, 8, 8\)",
        ),
    ],
)
def test_sizes_and_conditions_that_do_not_fit_are_refused(config, changes, message):
    x = changes.pop("x", torch.zeros(2, 3, 8, 8))
    with pytest.raises(ShapeError, match=message):
        make(config)(x, torch.tensor([5.0]), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 100, "channel_mult": ()}, "image_size 100 has no usual layout"),
        ({"num_channels": 40}, "must be a multiple of 32"),
        ({"num_heads": 5}, "attention heads must divide"),
        ({"null_embedding": True}, "set emb_input_dims too"),
    ],
)
def test_layouts_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **changes)


@pytest.mark.parametrize("config", [CONDITIONED, ProcessConfig(noise_schedule="cosine", variance="fixed_small")])
def test_a_config_is_a_json_object(config):
    assert from_dict(type(config), to_dict(config)) == config
