"""VQGAN and GumbelVQ: sizes, errors, batches and number formats."""

import dataclasses

import pytest
import torch

from dalle3.config import from_dict, to_dict
from dalle3.errors import CodesError, ConfigError, ImageError
from dalle3.models.vqgan import VQGAN, GumbelVQ, GumbelVQConfig, VQGANConfig
from dalle3.models.vqgan_autoencoder import to_signed, to_unit

TINY = {"ch": 32, "ch_mult": (1, 1, 2), "num_res_blocks": 1, "attn_resolutions": (8,), "resolution": 32}
TINY |= {"z_channels": 8, "embed_dim": 8, "num_tokens": 20}


@pytest.fixture(params=["vqgan", "gumbel_vq"])
def model(request):
    torch.manual_seed(0)
    tiny = VQGAN(VQGANConfig(**TINY)) if request.param == "vqgan" else GumbelVQ(GumbelVQConfig(**TINY))
    return tiny.eval()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (16, 40), (4, 4)])
@torch.no_grad()
def test_any_multiple_of_the_factor_is_tokenized_and_drawn(model, height, width):
    codes = model.encode(torch.rand(2, 3, height, width))
    assert codes.shape == (2, height // 4, width // 4)
    assert codes.dtype == torch.int64
    picture = model.decode(codes)
    assert picture.shape == (2, 3, height, width)
    assert picture.min() >= 0
    assert picture.max() <= 1


@pytest.mark.parametrize("attn_resolutions", [(), (8,), (16, 8), (32,)])
def test_the_factor_comes_from_the_levels_not_from_where_they_attend(attn_resolutions):
    config = VQGANConfig(**TINY | {"attn_resolutions": attn_resolutions})
    assert config.factor == 4
    assert VQGAN(config).encode(torch.rand(1, 3, 32, 32)).shape == (1, 8, 8)


@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch(model):
    images = torch.rand(3, 3, 32, 32)
    codes = model.encode(images)
    assert torch.equal(codes[1:2], model.encode(images[1:2]))
    torch.testing.assert_close(model.decode(codes)[1:2], model.decode(codes[1:2]))


@torch.no_grad()
def test_embeddings_are_rows_of_the_codebook(model):
    codes = torch.tensor([[[3, 19], [0, 7]]])
    embeddings = model.embed(codes)
    assert embeddings.shape == (1, 8, 2, 2)
    assert torch.equal(embeddings[0, :, 0, 1], model.codebook[19])


def test_a_picture_whose_side_is_no_multiple_is_refused(model):
    with pytest.raises(ImageError, match="33x32 pixels; the sides must be multiples of 4"):
        model.encode(torch.rand(1, 3, 32, 33))


def test_a_picture_in_bytes_is_refused(model):
    with pytest.raises(ImageError, match="divide bytes by 255"):
        model.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("code", [-1, 20])
def test_codes_outside_the_codebook_are_refused(model, code):
    with pytest.raises(CodesError, match="entries 0 to 19"):
        model.decode(torch.full((1, 2, 2), code))


@torch.no_grad()
def test_bfloat16_weights_take_and_give_float32_pictures(model):
    model.to(torch.bfloat16)
    codes = model.encode(torch.rand(1, 3, 32, 32))
    assert model.decode(codes).dtype == torch.float32


@torch.no_grad()
def test_bfloat16_draws_nearly_the_same_picture(model):
    codes = torch.arange(16).view(1, 4, 4)
    picture = model.decode(codes)
    assert (model.to(torch.bfloat16).decode(codes) - picture).abs().mean() < 0.01


@torch.no_grad()
def test_norms_in_bfloat16_take_their_statistics_in_float32(model):
    norm = model.decoder.norm_out.to(torch.bfloat16)
    x = (5 + torch.randn(1, 32, 64, 64)).to(torch.bfloat16)
    exact = torch.nn.functional.group_norm(x.float(), 32, norm.weight.float(), norm.bias.float(), norm.eps)
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(norm(x.contiguous(memory_format=layout)), exact.to(torch.bfloat16))


def test_the_decoder_works_channels_last(model):
    seen = []
    model.decoder.up[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model.decode(torch.zeros(1, 4, 4, dtype=torch.long))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_dropout_acts_only_while_training():
    model = VQGAN(VQGANConfig(**TINY, dropout=0.5))
    images = torch.rand(1, 3, 32, 32)
    assert not torch.equal(model.latents(images), model.latents(images))
    model.eval()
    assert torch.equal(model.latents(images), model.latents(images))


def test_gumbel_vq_samples_the_same_codes_from_the_same_seed():
    model = GumbelVQ(GumbelVQConfig(**TINY)).eval()
    images = torch.rand(1, 3, 32, 32)
    first, again, other = (model.encode(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_straight_through_gradients_reach_the_encoder_as_if_nothing_were_quantized():
    model = VQGAN(VQGANConfig(**TINY))
    z = torch.randn(1, 8, 2, 2, requires_grad=True)
    quantized, _, _ = model.quantize_st(z)
    direction = torch.randn_like(quantized)
    (quantized * direction).sum().backward()
    assert torch.equal(z.grad, direction)


@torch.no_grad()
def test_every_entry_is_nearest_to_itself():
    model = VQGAN(VQGANConfig(**TINY))
    codes = torch.arange(20).view(1, 4, 5)
    assert torch.equal(model.quantize(model.embed(codes)), codes)


def test_to_unit_undoes_to_signed():
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(to_unit(to_signed(images)), images)


@pytest.mark.parametrize("config", [VQGANConfig(**TINY), GumbelVQConfig(**TINY, kl_weight=0.1), GumbelVQConfig()])
def test_a_configuration_survives_json(config):
    assert from_dict(type(config), to_dict(config)) == config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ch", 48, "ch must be a multiple of 32"),
        ("ch_mult", (), "a list of positive numbers"),
        ("in_channels", 182, "segmentation"),
        ("resolution", 30, "multiple of 4"),
        ("num_res_blocks", 0, "at least 1"),
    ],
)
def test_a_network_that_cannot_be_is_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(VQGANConfig(**TINY), **{field: value})


def test_a_gumbel_vq_needs_latents_as_wide_as_its_entries():
    with pytest.raises(ConfigError, match="z_channels is 8 and embed_dim is 16"):
        GumbelVQConfig(**TINY | {"embed_dim": 16})
