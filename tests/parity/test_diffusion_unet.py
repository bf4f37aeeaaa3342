"""The UNets against guided-diffusion and DALL-3's fork of it: names, shapes and numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from diffusion import winograd
from diffusion.guidance import clipped
from diffusion.losses import training_losses
from diffusion.presets import PRESETS
from diffusion.process import Process, ProcessConfig
from diffusion.samplers import ddim, ddpm, finish
from diffusion.unet import SuperResUNet, UNet, UNetConfig
from diffusion.weights import build, load
from tests.diffusion.helpers import GOLDEN, convolving, golden, relative_error
from tests.golden.recipe import recipe_state

UNETS = [
    "jack_256layout_recipe",
    "jack_emb",
    "jack_noemb",
    "openai_classcond_updown",
    "openai_default64_recipe",
    "openai_legacy_scaleshift",
]
MANIFESTS = {
    "jack_unet_64": ("dalle3-64", {}),
    "jack_unet_128": ("dalle3-128", {}),
    "jack_unet_256": ("dalle3-256", {}),
    "jack_superres_256": ("dalle3-64-256", {}),
    "openai_unet_64": ("openai-64", {"num_classes": None}),
    "openai_unet_128": ("openai-128", {"num_classes": None}),
    "openai_unet_256": ("openai-256-uncond", {}),
    "openai_superres_256": ("openai-64-256", {"num_classes": None}),
}
TOLERANCE = 1e-5


def from_flags(flags: dict) -> UNetConfig:
    """The config that guided-diffusion's flags of a fixture mean."""
    size = flags.get("large_size") or flags["image_size"]
    mults = tuple(float(part) for part in flags.get("channel_mult", "").split(",") if part)
    return UNetConfig(
        image_size=size,
        num_channels=flags["num_channels"],
        channel_mult=mults,
        num_res_blocks=flags["num_res_blocks"],
        attention_resolutions=tuple(int(part) for part in flags["attention_resolutions"].split(",")),
        num_heads=flags["num_heads"],
        num_head_channels=None if flags["num_head_channels"] == -1 else flags["num_head_channels"],
        num_classes=1000 if flags["class_cond"] else None,
        use_scale_shift_norm=flags["use_scale_shift_norm"],
        resblock_updown=flags["resblock_updown"],
        use_new_attention_order=flags.get("use_new_attention_order", False),
        learn_sigma=flags["learn_sigma"],
        emb_input_dims=flags["emb_input_dims"] if flags.get("emb_condition") else None,
        emb_output_dims=flags.get("emb_output_dims", 512),
    )


def rebuild(name: str, kind: type[UNet] = UNet):
    """The network of a fixture with the fixture's weights, ready for inference, and the fixture."""
    fixture = golden(f"f_unet_{name}" if kind is UNet else name)
    state = recipe_state(fixture["shapes"], gain=fixture["recipe_gain"]) if "shapes" in fixture else None
    network = load(from_flags(fixture["hparams"]), state or fixture["state_dict"], kind=kind)
    return network.eval().requires_grad_(False), fixture


@pytest.fixture(params=["native", "operators"])
def convolution(request, monkeypatch):
    """Both, for every layer that they can do, however small."""
    for table in ("NATIVE", "BY_OPERATORS"):
        least = dict.fromkeys(getattr(winograd, table), winograd.Least(channels=16, tiles=1))
        monkeypatch.setattr(winograd, table, least)
    with convolving(request.param):
        yield


@pytest.mark.usefixtures("convolution")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", UNETS)
def test_outputs_agree(name, memory_format):
    network, fixture = rebuild(name)
    network.to(memory_format=memory_format)
    inputs = fixture["inputs"]
    conditions = {"embeddings": inputs.get("image_embeds"), "labels": inputs.get("y")}
    for suffix, told in (("", inputs["t"]), ("_t_fractional", inputs["t_fractional"])):
        found = network(inputs["x"].contiguous(memory_format=memory_format), told, **conditions)
        assert relative_error(found, fixture["outputs"]["out" + suffix]) < TOLERANCE


@pytest.mark.usefixtures("convolution")
def test_the_upsampler_agrees():
    network, fixture = rebuild("f_superres_recipe", SuperResUNet)
    inputs = fixture["inputs"]
    for suffix, told in (("", inputs["t"]), ("_t_fractional", inputs["t_fractional"])):
        found = network(inputs["x"], told, low_res=inputs["low_res"])
        assert relative_error(found, fixture["outputs"]["out" + suffix]) < TOLERANCE


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_names_and_shapes_of_published_models_agree(manifest):
    name, changes = MANIFESTS[manifest]
    expected = json.loads((GOLDEN / "manifests" / f"{manifest}.json").read_text())
    network = build(replace(PRESETS[name].unet, **changes), PRESETS[name].kind)
    assert {key: list(tensor.shape) for key, tensor in network.state_dict().items()} == expected["state_dict"]
    assert sum(parameter.numel() for parameter in network.parameters()) == expected["params"]


LOOPS = {
    "p_sample_loop_seed41": (ddpm, True),
    "p_sample_loop_noclip_seed41": (ddpm, False),
    "ddim_sample_loop_eta0_seed41": (ddim, True),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_whole_loops_agree(loop):
    network, _ = rebuild("openai_legacy_scaleshift")
    outputs = golden("f_unet_loops")["outputs"]
    sampler, clipping = LOOPS[loop]
    process = Process(ProcessConfig(rescale_timesteps=True), "10")
    denoise = process.denoiser(network)
    first, *rest = outputs["noises_seed41"]
    draws = iter(rest)
    denoise = clipped(denoise) if clipping else denoise
    sample = finish(sampler(denoise, first, process=process, noise=lambda like: next(draws)))
    # Ten steps of an untrained network amplify the last bit: channels_last alone moves these by as much.
    assert relative_error(sample, outputs[loop]) < 2e-4


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_losses_and_gradients_agree(use_checkpoint):
    fixture, source = golden("f_unet_loops"), golden("f_unet_openai_legacy_scaleshift")
    config = from_flags(fixture["hparams"])
    network = load(replace(config, use_checkpoint=use_checkpoint), source["state_dict"], kind=UNet)
    inputs, outputs = fixture["inputs"], fixture["outputs"]
    process = Process(ProcessConfig(rescale_timesteps=True), "10")
    losses = training_losses(process, network, x0=inputs["x0"], t=inputs["t"], noise=inputs["noise"])
    for term, expected in outputs["training_losses"].items():
        assert relative_error(losses[term], expected) < TOLERANCE, term
    losses["loss"].mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert relative_error(gradients["input_blocks.0.0.weight"], outputs["grad_in0"]) < TOLERANCE
    assert relative_error(gradients["out.2.weight"], outputs["grad_out"]) < TOLERANCE
    for name, norm in outputs["grad_norms"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), name
