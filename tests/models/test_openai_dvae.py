"""OpenAI's discrete VAE: sizes, errors and its configuration."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from dalle3.config import from_dict, to_dict
from dalle3.errors import CodesError, ConfigError, ImageError
from dalle3.models.openai_dvae import OpenAIDiscreteVAE, OpenAIDiscreteVAEConfig, map_pixels, unmap_pixels

TINY = OpenAIDiscreteVAEConfig(num_tokens=20, image_size=32, n_hid=8, n_init=6, n_blk_per_group=1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return OpenAIDiscreteVAE(TINY)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 16)])
@torch.no_grad()
def test_any_multiple_of_8_is_tokenized_and_drawn(model, height, width):
    codes = model.encode(torch.rand(2, 3, height, width))
    assert codes.shape == (2, height // 8, width // 8)
    picture = model.decode(codes)
    assert picture.shape == (2, 3, height, width)
    assert picture.min() >= 0
    assert picture.max() <= 1


@torch.no_grad()
def test_embeddings_are_the_first_layer_of_one_hot_codes(model):
    codes = torch.randint(20, (2, 3, 5))
    one_hot = F.one_hot(codes, 20).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(model.embed(codes), model.dec.blocks.input(one_hot))
    torch.testing.assert_close(model.decode_raw(codes), model.dec(one_hot))


@torch.no_grad()
def test_bfloat16_weights_take_and_give_float32_pictures(model):
    model.to(torch.bfloat16)
    codes = model.encode(torch.rand(1, 3, 32, 32))
    assert model.decode(codes).dtype == torch.float32


@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch(model):
    images = torch.rand(3, 3, 32, 32)
    codes = model.encode(images)
    assert torch.equal(codes[1:2], model.encode(images[1:2]))
    torch.testing.assert_close(model.decode(codes)[1:2], model.decode(codes[1:2]))


def test_unmap_pixels_undoes_map_pixels():
    images = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(unmap_pixels(map_pixels(images)), images)


def test_the_published_size_is_the_default():
    with torch.device("meta"):
        model = OpenAIDiscreteVAE(OpenAIDiscreteVAEConfig())
    assert sum(p.numel() for p in model.enc.parameters()) == 53_786_240
    assert sum(p.numel() for p in model.dec.parameters()) == 43_829_766


def test_wrong_pictures_and_codes_are_refused(model):
    with pytest.raises(ImageError, match="multiples of 8"):
        model.encode(torch.rand(1, 3, 36, 32))
    with pytest.raises(CodesError, match="entries 0 to 19"):
        model.decode(torch.full((1, 2, 2), 20))


def test_a_configuration_survives_json():
    assert from_dict(OpenAIDiscreteVAEConfig, to_dict(TINY)) == TINY


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("n_hid", 6, "multiple of 4"), ("image_size", 100, "multiple of 8"), ("n_blk_per_group", 0, "at least 1")],
)
def test_a_network_that_cannot_be_is_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **{field: value})
