"""Weights: what is read from the tensors, what is refused, and that nothing is held twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffusion.errors import ConfigError, WeightsError
from diffusion.presets import PRESETS, Preset, find_preset, fitting_presets
from diffusion.process import ProcessConfig
from diffusion.unet import SuperResUNet, UNet, UNetConfig
from diffusion.weights import build, infer_config, load

TINY = UNetConfig(num_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(32,), num_heads=2)
VARIANTS = [
    TINY,
    replace(TINY, num_channels=64),
    replace(TINY, num_classes=7),
    replace(TINY, learn_sigma=False),
    replace(TINY, use_scale_shift_norm=False),
    replace(TINY, resblock_updown=True),
    replace(TINY, emb_input_dims=8, emb_output_dims=32),
    replace(TINY, emb_input_dims=8, emb_output_dims=64, null_embedding=True),
]


@pytest.mark.parametrize("kind", [UNet, SuperResUNet])
@pytest.mark.parametrize("config", VARIANTS)
def test_what_the_tensors_tell_is_read(config, kind):
    base = replace(TINY, dropout=0.3)
    state = build(config, kind).state_dict()
    assert infer_config(state, base, kind=kind) == replace(config, dropout=0.3, emb_output_dims=config.emb_output_dims)


def test_a_decoder_that_sees_a_second_picture_is_told_from_an_upsampler():
    config = replace(TINY, emb_input_dims=8, emb_output_dims=32, low_res=True)
    assert infer_config(build(config, UNet).state_dict(), TINY, kind=UNet) == config
    with pytest.raises(WeightsError, match="takes 6 channels, a UNet 3"):
        infer_config(build(TINY, SuperResUNet).state_dict(), TINY, kind=UNet)


def test_loading_takes_the_tensors_themselves():
    state = UNet(TINY).state_dict()
    network = load(TINY, state, kind=UNet)
    assert all(parameter.data_ptr() == state[name].data_ptr() for name, parameter in network.named_parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_half_precision_files_become_float32():
    state = {name: tensor.half() for name, tensor in UNet(TINY).state_dict().items()}
    network = load(TINY, state, kind=UNet)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_a_wrong_preset_names_the_tensors_that_differ():
    state = UNet(replace(TINY, num_res_blocks=2)).state_dict()
    preset = Preset(unet=TINY, process=ProcessConfig())
    with pytest.raises(WeightsError) as error:
        preset.load(state)
    message = str(error.value)
    assert message.startswith(
        "118 tensors do not fit this network: output_blocks.1.0.in_layers.0.weight is [128] where"
    )
    assert "and 114 more. Choose the preset" in message
    assert message.endswith("Presets that fit: none")


def test_a_wrong_preset_names_those_that_fit():
    state = build(PRESETS["dalle3-64"].unet, UNet).state_dict()
    with pytest.raises(WeightsError, match=r"Presets that fit: dalle3-64$"):
        find_preset("dalle3-256").load(state)


def test_a_missing_and_an_unexpected_tensor_are_named():
    state = UNet(TINY).state_dict()
    state["extra"] = state.pop("out.2.bias")
    with pytest.raises(WeightsError, match=r"2 tensors .*: out\.2\.bias is missing; extra \[6\] is not of it"):
        load(TINY, state, kind=UNet)


def test_weights_of_something_else_are_refused():
    with pytest.raises(WeightsError, match=r"not the weights of a diffusion UNet: .* but visual\.proj, logit_scale"):
        find_preset("dalle3-256").load({"visual.proj": torch.zeros(2, 2), "logit_scale": torch.zeros(())})


def test_an_upsampler_is_not_taken_for_a_decoder():
    state = build(TINY, SuperResUNet).state_dict()
    with pytest.raises(WeightsError, match="takes 6 channels, a UNet 3: decoders take 3, upsamplers 6"):
        infer_config(state, TINY, kind=UNet)


def test_an_unknown_preset_is_refused_by_name():
    with pytest.raises(ConfigError, match="'dalle3-1024' is unknown; it may be dalle3-256"):
        find_preset("dalle3-1024")


def test_presets_that_fit_are_found():
    state = build(PRESETS["dalle3-256"].unet, UNet).state_dict()
    assert fitting_presets(state) == ["dalle3-256", "dalle3-ru"]


def test_the_512_layouts_stride_over_their_levels():
    assert build(PRESETS["openai-512"].unet, UNet).stride == 64
    assert build(PRESETS["openai-128-512"].unet, SuperResUNet).stride == 32
