"""UNets of guided-diffusion: what their tensors tell, what must be said, and files given in the wrong place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from dalle3.checkpoint import build, read_folder, save_checkpoint
from dalle3.cli import main
from dalle3.convert import read
from dalle3.convert.guided_diffusion import KINDS, Layout
from dalle3.convert.roles import CLIP, CODEC, DALLE, DECODER, UPSAMPLER, read_as
from dalle3.errors import CheckpointError
from diffusion.presets import PRESETS
from diffusion.weights import build as empty
from tests import tiny
from tests.diffusion.helpers import golden, relative_error
from tests.parity.test_diffusion_unet import from_flags


def published(name: str, path: Path) -> Path:
    """A file with the names and shapes of a published model, and one number behind each tensor."""
    preset = PRESETS[name]
    state = empty(preset.unet, preset.kind).state_dict()
    torch.save({key: torch.zeros(1).expand(tensor.shape) for key, tensor in state.items()}, path)
    return path


def write(checkpoint, path: Path) -> Path:
    torch.save(checkpoint.state, path)
    return path


@pytest.mark.parametrize(("name", "kind"), [("dalle3-256", "unet"), ("dalle3-64", "unet")])
def test_a_published_decoder_needs_no_flags(name, kind, tmp_path):
    found = read(published(name, tmp_path / "model-latest.pt"))
    assert found.kind == kind
    assert (found.config.unet, found.config.process) == (PRESETS[name].unet, PRESETS[name].process)
    assert name in found.notes[0]


def test_a_published_upsampler_needs_no_flags(tmp_path):
    found = read(published("dalle3-64-256", tmp_path / "model016000.pt"))
    assert (found.kind, found.config.scale, found.config.small_size) == ("super_res_unet", 4, 64)
    assert found.training == {"step": 16000}


def test_models_that_look_alike_must_be_told_apart(tmp_path):
    path = published("openai-64-256", tmp_path / "64_256_upsampler.pt")
    assert read(path).config.unet.num_classes == 1000
    path = published("openai-256-uncond", tmp_path / "256x256_diffusion_uncond.pt")
    assert read(path).config.unet.dropout == 0, "that of LSUN differs in dropout alone, which nobody samples with"


def test_a_wrong_preset_names_the_tensors_that_differ_and_what_fits(tmp_path):
    path = published("dalle3-64", tmp_path / "model.pt")
    with pytest.raises(
        CheckpointError, match=r"model\.pt: \d+ tensors do not fit .*\[\d.*where it has.*fit: dalle3-64$"
    ):
        read(path, layout=Layout(preset="dalle3-256"))


def test_an_upsampler_is_not_run_as_a_decoder(tmp_path):
    path = published("dalle3-64-256", tmp_path / "model.pt")
    with pytest.raises(
        CheckpointError, match=r"of an upsampler, which takes 6, and dalle3-256 is a decoder.*fit: dalle3-64-256"
    ):
        read(path, layout=Layout(preset="dalle3-256"))


def test_a_network_of_ones_own_needs_its_layout(tmp_path):
    path = write(tiny.decoder(), tmp_path / "model000100.pt")
    with pytest.raises(CheckpointError, match="they fit no published model; say its layout with `dalle3 convert`"):
        read(path)


def test_only_what_the_tensors_do_not_tell_must_be_said(tmp_path):
    original = tiny.decoder()
    path = write(original, tmp_path / "ema_0.9999_000100.pt")
    said = {name: getattr(original.config.unet, name) for name in ("image_size", "channel_mult", "num_res_blocks")}
    found = read(path, layout=Layout(unet={**said, "attention_resolutions": ()}, process={"noise_schedule": "cosine"}))
    assert found.config.unet == original.config.unet
    assert found.config.process == original.config.process
    assert found.training == {"step": 100}


def test_flags_change_a_preset(tmp_path):
    unet = dataclasses.replace(PRESETS["dalle3-64"].unet, num_res_blocks=2)
    state = {key: torch.zeros(1).expand(t.shape) for key, t in empty(unet, KINDS["unet"]).state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    layout = Layout(preset="dalle3-64", unet={"num_res_blocks": 2}, process={"noise_schedule": "linear"})
    found = read(tmp_path / "model.pt", layout=layout).config
    assert (found.unet.num_res_blocks, found.process.noise_schedule) == (2, "linear")


def test_without_learned_variance_it_is_guided_diffusions_fixed_one(tmp_path):
    original = tiny.decoder(learn_sigma=False)
    layout = Layout(
        unet={"image_size": 16, "channel_mult": (1, 1, 1, 1), "num_res_blocks": 1, "attention_resolutions": ()}
    )
    assert read(write(original, tmp_path / "model.pt"), layout=layout).config.process.variance == "fixed_large"


def test_convert_writes_a_folder_that_answers_as_the_original(tmp_path, capsys):
    fixture = golden("f_unet_jack_emb")
    torch.save(fixture["state_dict"], tmp_path / "model000500.pt")
    flags = ["--image_size", "64", "--channel_mult", "1,2,2,2", "--num_res_blocks", "1", "--num_head_channels", "32"]
    config = from_flags(fixture["hparams"])
    flags[3] = ",".join(str(int(mult)) for mult in config.channel_mult)
    line = [
        "convert",
        str(tmp_path / "model000500.pt"),
        str(tmp_path / "ours"),
        "--attention_resolutions",
        "16",
        *flags,
    ]
    assert main([*line, "--rescale_timesteps"]) == 0
    assert "unet, " in capsys.readouterr().out
    found = read_folder(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["step"] == 500
    assert found.config.process.rescale_timesteps
    network, inputs = build(found, device=torch.device("cpu")), fixture["inputs"]
    with torch.no_grad():
        answer = network(inputs["x"], inputs["t"], embeddings=inputs["image_embeds"])
    assert relative_error(answer, fixture["outputs"]["out"]) < 1e-5


def test_a_network_owns_the_tensors_of_the_file(tmp_path):
    found = read(
        write(tiny.decoder(), tmp_path / "model.pt"), layout=Layout(unet=dataclasses.asdict(tiny.decoder().config.unet))
    )
    network = build(found, device=torch.device("cpu"))
    assert all(parameter.data_ptr() == found.state[name].data_ptr() for name, parameter in network.named_parameters())


def test_the_image_tokenizer_is_put_beside_a_decoder(tmp_path, capsys):
    save_checkpoint(tiny.decoder(), tmp_path / "decoder")
    save_checkpoint(tiny.codec(), tmp_path / "vae")
    line = ["convert", str(tmp_path / "decoder"), str(tmp_path / "whole")]
    assert main(line) == 0
    assert "needs beside it: the image tokenizer of its codes, whose entries are 8 wide" in capsys.readouterr().out
    assert main([*line[:2], str(tmp_path / "ours"), "--vae_path", str(tmp_path / "vae")]) == 0
    assert "with discrete_vae" in capsys.readouterr().out
    found = read_folder(tmp_path / "ours")
    assert found.codec is not None
    assert found.codec_info is not None
    assert found.codec_info["vocab"] == tiny.CODES


def test_a_layout_is_refused_beside_what_has_none(tmp_path, capsys):
    save_checkpoint(tiny.codec(), tmp_path / "vae")
    assert main(["convert", str(tmp_path / "vae"), str(tmp_path / "out"), "--preset", "dalle3-256"]) == 2
    assert "is no bare UNet of guided-diffusion" in capsys.readouterr().err


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file or folder of every kind."""
    folder = tmp_path_factory.mktemp("files")
    save_checkpoint(tiny.dalle(image_codec=None), folder / "dalle")
    save_checkpoint(tiny.codec(), folder / "codec")
    save_checkpoint(tiny.clip(), folder / "clip")
    save_checkpoint(tiny.decoder(), folder / "decoder")
    save_checkpoint(tiny.upsampler(), folder / "upsampler")
    write(tiny.decoder(), folder / "bare.pt")
    return folder


ROLES = {"dalle": DALLE, "codec": CODEC, "clip": CLIP, "decoder": DECODER, "upsampler": UPSAMPLER}


@pytest.mark.parametrize("given", ROLES)
@pytest.mark.parametrize("wanted", ROLES)
def test_every_swap_is_named_with_the_flag_that_wants_it(files, given, wanted):
    if given == wanted:
        assert read_as(files / given, ROLES[wanted], flag="--here").kind in ROLES[wanted].kinds
        return
    with pytest.raises(CheckpointError) as error:
        read_as(files / given, ROLES[wanted], flag="--here")
    message = str(error.value)
    assert f", not {ROLES[wanted].name}, which --here takes. " in message
    assert message.endswith(f"belongs to {ROLES[given].flag}")


def test_a_bare_unet_is_named_even_where_nobody_could_run_it(files):
    with pytest.raises(
        CheckpointError, match=r"bare\.pt is a unet, not a CLIP, which --clip takes\. A diffusion decoder"
    ):
        read_as(files / "bare.pt", CLIP, flag="--clip")
    with pytest.raises(CheckpointError, match="say its layout"):
        read_as(files / "bare.pt", DECODER, flag="--model_path")
