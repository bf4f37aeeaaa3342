"""DALLE-pytorch's discrete VAE: sizes, scales, errors and its configuration."""

import argparse
import dataclasses

import pytest
import torch

from dalle3.config import add_arguments, from_args, from_dict, to_dict
from dalle3.errors import CodesError, ConfigError, ImageError
from dalle3.models.discrete_vae import DiscreteVAE, DiscreteVAEConfig

TINY = DiscreteVAEConfig(image_size=32, num_tokens=20, codebook_dim=6, num_layers=2, hidden_dim=8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DiscreteVAE(TINY)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 16)])
def test_any_multiple_of_the_factor_is_tokenized_and_drawn(model, height, width):
    codes = model.encode(torch.rand(2, 3, height, width))
    assert codes.shape == (2, height // 4, width // 4)
    picture = model.decode(codes)
    assert picture.shape == (2, 3, height, width)
    assert picture.min() >= 0
    assert picture.max() <= 1


def test_a_picture_does_not_depend_on_its_batch(model):
    images = torch.rand(3, 3, 32, 32)
    codes = model.encode(images)
    assert torch.equal(codes[1:2], model.encode(images[1:2]))
    torch.testing.assert_close(model.decode(codes)[1:2], model.decode(codes[1:2]))


def test_bfloat16_weights_take_and_give_float32_pictures(model):
    model.to(torch.bfloat16)
    codes = model.encode(torch.rand(1, 3, 32, 32))
    assert model.decode(codes).dtype == torch.float32


def test_pictures_are_the_raw_ones_off_the_networks_scale(model):
    codes = torch.randint(20, (1, 8, 8))
    torch.testing.assert_close(model.decode(codes), (model.decode_raw(codes) / 2 + 0.5).clamp(0, 1))


def test_denormalise_undoes_normalise():
    config = dataclasses.replace(TINY, normalization=((0.1, 0.5, 0.7), (0.2, 0.5, 2.0)))
    images = torch.rand(2, 3, 4, 4)
    model = DiscreteVAE(config)
    assert model.normalise(images)[0, 2, 0, 0] == (images[0, 2, 0, 0] - 0.7) / 2
    torch.testing.assert_close(model.denormalise(model.normalise(images)), images)


def test_without_normalization_pictures_pass_as_they_are():
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(DiscreteVAE(dataclasses.replace(TINY, normalization=None)).normalise(images), images)


def test_the_loss_is_a_function_of_the_seed(model):
    images = torch.rand(2, 3, 32, 32)
    first, again, other = (model.loss(images, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_uniform_codes_have_no_divergence(model):
    torch.nn.init.zeros_(model.encoder[-1].weight)
    torch.nn.init.zeros_(model.encoder[-1].bias)
    _, parts = model.loss(torch.rand(1, 3, 32, 32), torch.Generator())
    assert parts["kl_div"].item() == pytest.approx(0, abs=1e-4)


def test_wrong_pictures_and_codes_are_refused(model):
    with pytest.raises(ImageError, match="multiples of 4"):
        model.encode(torch.rand(1, 3, 30, 32))
    with pytest.raises(ImageError, match="multiples of 4"):
        model.loss(torch.rand(1, 3, 30, 32), torch.Generator())
    with pytest.raises(CodesError, match="entries 0 to 19"):
        model.decode(torch.full((1, 2, 2), 20))


@pytest.mark.parametrize("normalization", [None, ((0.0, 0.5, 0.5), (1.0, 0.5, 0.5))])
def test_a_configuration_survives_json(normalization):
    config = dataclasses.replace(TINY, normalization=normalization)
    assert from_dict(DiscreteVAEConfig, to_dict(config)) == config


def test_normalization_can_be_a_flag():
    parser = argparse.ArgumentParser()
    add_arguments(parser, DiscreteVAEConfig, title="vae")
    config = from_args(DiscreteVAEConfig, parser.parse_args(["--normalization", "0,0,0; 1,1,0.5"]))
    assert config.normalization == ((0.0, 0.0, 0.0), (1.0, 1.0, 0.5))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("channels", 4, "3 channels"),
        ("image_size", 30, "a multiple of"),
        ("num_layers", 0, "at least 1"),
        ("normalization", ((0.5,), (0.5,)), "3 means and 3 deviations"),
        ("temperature", 0.0, "above 0"),
    ],
)
def test_a_network_that_cannot_be_is_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **{field: value})
