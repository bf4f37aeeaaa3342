"""Our image tokenizers against taming-transformers, dalle-pytorch and OpenAI's DALL-E, on the same weights."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dalle3.config import from_dict
from dalle3.models.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle3.models.openai_dvae import OpenAIDiscreteVAE, OpenAIDiscreteVAEConfig, map_pixels
from dalle3.models.vqgan import VQGAN, GumbelVQ, GumbelVQConfig, VQGANConfig
from tests.golden.recipe import recipe_input, recipe_state

GOLDEN = Path(__file__).parents[1] / "golden"
DEEP = 5e-5  # of taming's networks: in float32 the reference is itself 1e-5 away from its float64 on these fixtures


def load(name):
    return torch.load(GOLDEN / f"{name}.pt", weights_only=True)


def distance(ours, reference):
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def taming_config(cls, hparams):
    names = {"mult": "ch_mult", "nrb": "num_res_blocks", "attn": "attn_resolutions", "z": "z_channels"}
    names["n_embed"] = "num_tokens"
    return from_dict(cls, {names.get(name, name): value for name, value in hparams.items()})


def filled(model):
    model.load_state_dict(recipe_state({name: value.shape for name, value in model.state_dict().items()}))
    return model


@pytest.fixture(scope="module")
def gumbel():
    """The GumbelVQ fixture and ours with its weights."""
    golden = load("d_gumbelvq_f8")
    model = GumbelVQ(taming_config(GumbelVQConfig, golden["hparams"]))
    model.load_state_dict({name: value.float() for name, value in golden["state_dict"].items()})
    images = (golden["inputs"]["x"].float() + 1) / 2
    return model.eval(), images, golden["outputs"], golden["gumbel_seed"]


@pytest.fixture(scope="module")
def vqgan():
    golden = load("d_vqgan_f16_recipe")
    model = VQGAN(taming_config(VQGANConfig, golden["hparams"]))
    model.load_state_dict(recipe_state(golden["shapes"], gain=golden["recipe_gain"]))
    return model.eval(), (recipe_input("x", (1, 3, 128, 128)) + 1) / 2, golden["outputs"]


@torch.no_grad()
def test_gumbel_vq_latents_and_logits_are_tamings(gumbel):
    model, images, expected, _ = gumbel
    latents = model.latents(images)
    assert distance(latents, expected["prequant"]) < DEEP
    assert distance(model.quantize(latents), expected["logits"]) < DEEP


def test_gumbel_vq_encodes_to_tamings_likeliest_codes(gumbel):
    model, images, expected, _ = gumbel
    assert torch.equal(model.encode(images), expected["indices_argmax"])


def test_gumbel_vq_samples_tamings_codes_from_the_same_seed(gumbel):
    model, images, expected, seed = gumbel
    codes = model.encode(images, torch.Generator().manual_seed(seed))
    assert torch.equal(codes, expected["indices_sampled"])


@torch.no_grad()
def test_gumbel_vq_quantizes_as_taming_with_the_same_noise(gumbel):
    model, _, expected, _ = gumbel
    quantized, codes, loss = model.quantize_gumbel(expected["prequant"], expected["gumbel_noise"])
    assert torch.equal(codes, expected["indices_sampled"])
    assert distance(quantized, expected["quant_sampled"]) < 1e-5
    assert loss.item() / model.config.kl_weight * 1e-8 == pytest.approx(expected["kl_loss"], rel=1e-5)


@torch.no_grad()
def test_gumbel_vq_draws_tamings_picture(gumbel):
    model, _, expected, _ = gumbel
    codes = expected["indices_argmax"]
    assert distance(model.embed(codes), expected["codebook_emb"]) < 1e-5
    assert distance(model.draw(model.embed(codes)), expected["decoded"]) < DEEP
    assert distance(model.decode(codes), (expected["decoded"].clamp(-1, 1) + 1) / 2) < DEEP


@torch.no_grad()
def test_gumbel_vq_draws_and_embeds_codes_as_the_fork_does(gumbel):
    golden = load("d_gumbelvq_f8_picture")
    codes = golden["codes"].view(1, 16, 16)
    assert distance(gumbel[0].embed(codes), golden["embeds"]) < 1e-5
    assert distance(gumbel[0].decode(codes), golden["image"]) < DEEP


@torch.no_grad()
def test_vqgan_latents_and_codes_are_tamings(vqgan):
    model, images, expected = vqgan
    assert distance(model.latents(images), expected["prequant"]) < DEEP
    assert torch.equal(model.encode(images).flatten(), expected["indices"])


@torch.no_grad()
def test_vqgan_quantizes_as_taming(vqgan):
    model, _, expected = vqgan
    quantized, codes, loss = model.quantize_st(expected["prequant"])
    assert torch.equal(codes.flatten(), expected["indices"])
    assert distance(quantized, expected["quant"]) < 1e-5
    assert loss.item() == pytest.approx(expected["vq_loss"], rel=1e-5)


@torch.no_grad()
def test_vqgan_draws_tamings_picture(vqgan):
    model, _, expected = vqgan
    codes = expected["indices"].view(1, 8, 8)
    assert distance(model.embed(codes), expected["codebook_emb"]) < 1e-5
    assert distance(model.draw(model.embed(codes)), expected["decoded"]) < DEEP


def assert_same_gradients(model, norms):
    """Against the largest: the gradients of biases before a norm are zero but for rounding."""
    scale = max(norms.values())
    for name, parameter in model.named_parameters():
        assert abs(parameter.grad.norm().item() - norms[name]) < 1e-5 * scale, name


@pytest.mark.parametrize("case", ["vqgan", "vqgan_without_conv"])
def test_training_a_vqgan_has_tamings_gradients(case):
    golden = load("image_tokenizers")[case]
    model = filled(VQGAN(from_dict(VQGANConfig, golden["config"])))
    redrawn, loss, codes = model((recipe_input("images", (2, 3, 32, 48)) + 1) / 2)
    (loss + (redrawn * recipe_input("direction", redrawn.shape)).mean()).backward()
    assert distance(redrawn, golden["redrawn"]) < DEEP
    assert loss.item() == pytest.approx(golden["codebook_loss"], rel=1e-5)
    assert torch.equal(codes, golden["codes"])
    assert_same_gradients(model, golden["gradient_norms"])


@pytest.mark.parametrize("case", ["gumbel_vq", "gumbel_vq_soft"])
def test_training_a_gumbel_vq_has_tamings_gradients(case):
    golden = load("image_tokenizers")[case]
    model = filled(GumbelVQ(from_dict(GumbelVQConfig, golden["config"])))
    images = (recipe_input("images", (2, 3, 32, 48)) + 1) / 2
    redrawn, loss, codes = model(images, golden["noise"], temperature=golden["temperature"])
    (loss + (redrawn * recipe_input("direction", redrawn.shape)).mean()).backward()
    assert distance(redrawn, golden["redrawn"]) < DEEP
    assert loss.item() == pytest.approx(golden["codebook_loss"], rel=1e-5)
    assert torch.equal(codes, golden["codes"])
    assert_same_gradients(model, golden["gradient_norms"])


@pytest.mark.parametrize(
    ("name", "cls", "config"),
    [
        ("taming_gumbel_f8_8192", GumbelVQ, GumbelVQConfig()),
        ("taming_vqgan_f16_1024", VQGAN, VQGANConfig()),
        ("taming_vqgan_f16_16384", VQGAN, VQGANConfig(num_tokens=16384)),
    ],
)
def test_published_sizes_have_tamings_keys_and_shapes(name, cls, config):
    expected = json.loads((GOLDEN / "manifests" / f"{name}.json").read_text())
    with torch.device("meta"):
        model = cls(config)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected["state_dict"]


DVAES = ["c_dvae_basic", "c_dvae_nonorm", "c_dvae_resnet_straight"]


def discrete_vae(golden):
    model = DiscreteVAE(from_dict(DiscreteVAEConfig, golden["hparams"]))
    model.load_state_dict(golden["state_dict"])
    return model


@pytest.mark.parametrize("name", DVAES)
def test_discrete_vae_encodes_and_decodes_as_dalle_pytorch(name):
    golden = load(name)
    model, images, expected = discrete_vae(golden), golden["inputs"]["img"], golden["outputs"]
    codes = model.encode(images)
    with torch.no_grad():
        assert distance(model.logits(model.normalise(images)), expected["logits"]) < 1e-5
        assert torch.equal(codes.flatten(1), expected["indices"])
        assert distance(model.decode_raw(codes), expected["decoded"]) < 1e-5


@pytest.mark.parametrize("name", DVAES)
@pytest.mark.parametrize("temperature", [None, 0.5])
def test_discrete_vae_loss_and_gradients_are_dalle_pytorchs(name, temperature):
    golden = load(name)
    model, expected = discrete_vae(golden), golden["outputs"]
    loss, parts = model.loss(golden["inputs"]["img"], expected["gumbel_noise"], temperature=temperature)
    loss.backward()
    expected_loss = expected[f"temp_{temperature}"]
    assert loss.item() == pytest.approx(expected_loss["loss"], rel=1e-5)
    assert parts["kl_div"].item() == pytest.approx(expected["kl_div_as_is"], rel=1e-5)
    assert distance(parts["reconstruction"], expected_loss["recons"]) < 1e-5
    assert distance(model.codebook.weight.grad, expected_loss["grad_codebook"]) < 1e-5
    assert distance(model.encoder[0][0].weight.grad, expected_loss["grad_enc0"]) < 1e-5
    assert_same_gradients(model, expected_loss["grad_norms"])


def test_reinmax_gradients_are_dalle_pytorchs():
    golden = load("image_tokenizers")["dvae_reinmax"]
    model = filled(DiscreteVAE(from_dict(DiscreteVAEConfig, golden["config"])))
    images = (recipe_input("square", (2, 3, 32, 32)) + 1) / 2
    loss, parts = model.loss(images, golden["noise"], temperature=golden["temperature"])
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-5)
    assert distance(parts["reconstruction"], golden["redrawn"]) < 1e-5
    assert_same_gradients(model, golden["gradient_norms"])


def test_a_checkpoint_of_train_vae_loads():
    golden = load("ckpt_dvae")
    DiscreteVAE(from_dict(DiscreteVAEConfig, golden["hparams"])).load_state_dict(golden["weights"])


@torch.no_grad()
def test_openai_dvae_is_openais():
    golden = load("image_tokenizers")["openai_dvae"]
    model = OpenAIDiscreteVAE(from_dict(OpenAIDiscreteVAEConfig, golden["config"]))
    for coder, gain in ((model.enc, 2), (model.dec, 1.5)):
        coder.load_state_dict(recipe_state({name: v.shape for name, v in coder.state_dict().items()}, gain=gain))
    images = F.interpolate((recipe_input("patches", (2, 3, 8, 12)) + 1) / 2, scale_factor=4)
    assert distance(model.enc(map_pixels(images)), golden["logits"]) < 1e-5
    assert torch.equal(model.encode(images), golden["logits"].argmax(1))
    assert distance(model.decode_raw(golden["codes"]), golden["statistics"]) < 1e-5
    assert distance(model.decode(golden["codes"]), golden["pictures"]) < 1e-5
