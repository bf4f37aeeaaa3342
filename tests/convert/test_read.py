"""Every format, told from its content: what is read, what is left out, and what is said of the rest."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from dalle3.checkpoint import save_checkpoint
from dalle3.convert import read
from dalle3.errors import CheckpointError
from tests import tiny
from tests.golden import FOLDER, golden

GUMBEL = FOLDER / "d_gumbelvq_f8_lightning.ckpt"


def save(value, path: Path) -> Path:
    torch.save(value, path)
    return path


def fork_file() -> dict:
    """A fork's DALLE over a GumbelVQ, as its train_dalle.py saves it."""
    dalle, gumbel = golden("a_vqgan_gumbel_rot_shift"), golden("d_gumbelvq_f8")
    vae = {f"vae.model.{name}": tensor for name, tensor in gumbel["state_dict"].items()}
    vae["vae.model.loss.discriminator.main.0.weight"] = torch.ones(2)
    return {"hparams": dalle["hparams"], "vae_params": None, "epoch": 3, "weights": {**dalle["state_dict"], **vae}}


def test_the_files_name_says_nothing(tmp_path):
    assert read(shutil.copy(FOLDER / "ckpt_dvae.pt", tmp_path / "photo.jpg")).kind == "discrete_vae"


def test_a_dalle_over_a_gumbel_vq_brings_it(tmp_path):
    found = read(save(fork_file(), tmp_path / "dalle.pt"))
    assert found.codec is not None
    assert (found.codec.kind, found.codec.config.factor, found.codec.config.num_tokens) == ("gumbel_vq", 8, 64)
    assert found.codec_info == {"kind": "gumbel_vq", "vocab": 64, "grid": 16}
    assert found.training == {"epoch": 3}
    assert any(line.startswith("vae.model.loss.* (1 tensors): ") for line in found.dropped)
    assert "no yaml" in found.codec.notes[0]


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ({"vae_class_name": "OpenAIDiscreteVAE", "version": "1.6.6"}, "openai_dvae"),
        ({"vae_class_name": "VQGanVAE", "version": "1.6.6"}, None),
        ({}, None),
    ],
)
def test_a_dalle_without_its_image_tokenizer_says_what_it_knows_of_it(tmp_path, extra, kind):
    raw = fork_file() | extra
    raw["weights"] = {name: tensor for name, tensor in raw["weights"].items() if not name.startswith("vae.")}
    found = read(save(raw, tmp_path / "dalle.pt"))
    assert found.codec is None
    assert found.codec_info is not None
    assert found.codec_info.get("kind") == kind
    assert (found.codec_info["vocab"], found.codec_info["grid"]) == (64, 16)


def test_a_dalle_over_openais_dvae_brings_it(tmp_path):
    raw, dvae = fork_file(), torch.load(FOLDER / "openai_dvae" / "expected.pt", weights_only=True)
    raw["weights"] = {name: tensor for name, tensor in raw["weights"].items() if not name.startswith("vae.")}
    for half, short in (("encoder", "enc"), ("decoder", "dec")):
        raw["weights"] |= {f"vae.{short}.{name}": tensor for name, tensor in dvae[half].items()}
    found = read(save(raw, tmp_path / "dalle.pt"))
    assert found.codec is not None
    assert found.codec.kind == "openai_dvae"


def test_every_key_of_a_file_is_read_or_listed(tmp_path):
    raw = {**fork_file(), "opt_state": {}, "scheduler_state": None, "surprise": 1}
    found = read(save(raw, tmp_path / "dalle.pt"))
    for key in ("opt_state", "scheduler_state", "surprise"):
        assert [line for line in found.dropped if line.startswith(f"{key}: ")]
    assert found.codec is not None
    read_here = len(found.state) + len(found.codec.state)
    listed = [line for line in found.dropped if line.split(":")[0].startswith(("transformer.", "vae."))]
    assert read_here + len(listed) == len(raw["weights"])


def test_parameters_saved_as_modules_do_are_read(tmp_path):
    raw = torch.load(FOLDER / "ckpt_dvae.pt", weights_only=True)
    raw["weights"] = {f"module.{name}": torch.nn.Parameter(tensor) for name, tensor in raw["weights"].items()}
    found = read(save(raw, tmp_path / "vae.pt"))
    assert not any(tensor.requires_grad for tensor in found.state.values())


def test_a_normalization_of_four_channels_is_cut_to_those_used(tmp_path):
    raw = torch.load(FOLDER / "ckpt_dvae.pt", weights_only=True)
    raw["hparams"]["normalization"] = ((0.5,) * 4, (0.5,) * 4)
    assert read(save(raw, tmp_path / "vae.pt")).config.normalization == ((0.5,) * 3, (0.5,) * 3)


def test_stray_hyper_parameters_of_a_vae_are_listed(tmp_path):
    raw = torch.load(FOLDER / "ckpt_dvae.pt", weights_only=True)
    raw["hparams"]["wandb"] = True
    assert "hparams.wandb: not a part of this model" in read(save(raw, tmp_path / "vae.pt")).dropped


def test_a_taming_checkpoint_takes_its_sizes_from_the_yaml():
    found = read(GUMBEL)
    assert found.config.resolution == 128
    assert found.config.kl_weight == 1e-8
    assert found.training == {"step": 12345, "epoch": 3}
    assert not found.notes
    assert found.dropped[0].startswith("loss.* (8 tensors): ")


def test_without_a_yaml_the_weights_give_the_same_network(tmp_path):
    found, told = read(shutil.copy(GUMBEL, tmp_path / "last.ckpt")).config, read(GUMBEL).config
    assert [found.attends(level) for level in range(4)] == [told.attends(level) for level in range(4)]
    for name in ("num_tokens", "embed_dim", "z_channels", "ch", "ch_mult", "num_res_blocks", "resamp_with_conv"):
        assert getattr(found, name) == getattr(told, name)


def test_a_vqgan_is_told_from_a_gumbel_vq(tmp_path):
    state = dict(golden("d_gumbelvq_f8")["state_dict"])
    state["quantize.embedding.weight"] = state.pop("quantize.embed.weight")
    for part in ("weight", "bias"):
        del state[f"quantize.proj.{part}"]
    assert read(save({"state_dict": state}, tmp_path / "last.ckpt")).kind == "vqgan"
    assert read(save(state, tmp_path / "bare.pt")).kind == "vqgan"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["params"].pop("ddconfig"), r"model\.yaml has no model\.params\.ddconfig, so it does not describe"),
        (lambda m: m["params"].pop("n_embed"), r"has no model\.params\.n_embed"),
        (lambda m: m.update(target="taming.models.vqgan.VQModel"), "the yaml is of a taming.models.vqgan.VQModel and"),
        (lambda m: m["params"]["ddconfig"].update(double_z=True), "double_z: True; only double_z: False"),
        (lambda m: m["params"]["ddconfig"].update(surprise=1), "has no field surprise"),
        (lambda m: m["params"]["ddconfig"].update(ch="wide"), "ch is 'wide'; it must be int"),
        (lambda m: m["params"]["ddconfig"].update(ch=64), r"encoder\.conv_in\.weight is \(32, 3, 3, 3\), not \(64"),
    ],
)
def test_a_yaml_that_does_not_fit_is_one_line(tmp_path, change, said):
    told = yaml.safe_load(GUMBEL.with_suffix(".yaml").read_text())
    change(told["model"])
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(told))
    with pytest.raises(CheckpointError, match=said) as caught:
        read(shutil.copy(GUMBEL, tmp_path / "last.ckpt"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2", "model: 3", "a: b: c", "<html>", "!!python/object/apply:os.system [ls]"])
def test_a_yaml_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.yaml") as caught:
        read(GUMBEL, config_path=tmp_path / "model.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("half", ["encoder.pkl", "decoder.pkl", ""])
def test_openais_dvae_is_read_from_its_folder_or_either_file(half):
    assert read(FOLDER / "openai_dvae" / half).config.num_tokens == 16


def test_openais_dvae_needs_both_files(tmp_path):
    shutil.copy(FOLDER / "openai_dvae" / "encoder.pkl", tmp_path)
    for path in (tmp_path, tmp_path / "encoder.pkl"):
        with pytest.raises(CheckpointError, match=r"decoder\.pkl: no such file; OpenAI's dVAE is encoder\.pkl and"):
            read(path)


def test_two_encoders_are_no_dvae(tmp_path):
    for name in ("encoder.pkl", "decoder.pkl"):
        shutil.copy(FOLDER / "openai_dvae" / "encoder.pkl", tmp_path / name)
    with pytest.raises(CheckpointError, match=r"decoder\.pkl does not hold the decoder"):
        read(tmp_path)


def test_openais_clip_is_read_from_its_archive_and_from_a_plain_state_dict():
    archive, plain = read(FOLDER / "clip_archive.pt"), read(FOLDER / "clip_archive_state.pt")
    assert archive.kind == plain.kind == "clip"
    assert (archive.config.image_size, archive.config.context_length) == (32, 8)
    assert all(torch.equal(archive.state[name], tensor) for name, tensor in plain.state.items())


def test_a_clip_with_a_resnet_is_refused_naming_those_without(tmp_path):
    state = torch.load(FOLDER / "clip_archive_state.pt", weights_only=True)
    state["visual.layer1.0.conv1.weight"] = torch.ones(1)
    with pytest.raises(CheckpointError, match="ResNet, which is not supported; use ViT-B-32"):
        read(save(state, tmp_path / "RN50.pt"))


def test_our_own_folder_is_read(tmp_path):
    tiny.write_model(tmp_path / "a")
    found = read(tmp_path / "a")
    assert (found.kind, found.codec is not None) == ("dalle", True)


def test_a_folder_with_one_checkpoint_is_that_checkpoint(tmp_path):
    shutil.copy(GUMBEL, tmp_path / "last.ckpt")
    shutil.copy(GUMBEL.with_suffix(".yaml"), tmp_path / "model.yaml")
    assert read(tmp_path).config.resolution == 128


def test_a_folder_of_something_else_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="holds none of"):
        read(tmp_path)


def test_the_source_is_named_with_its_hash(tmp_path):
    source = read(FOLDER / "ckpt_dvae.pt").source
    assert source is not None
    assert (source.format, source.file, len(source.sha256)) == ("dalle-pytorch-vae", "ckpt_dvae.pt", 64)


UNET = {
    "time_embed.0.weight": torch.ones(4, 4),
    "input_blocks.0.0.weight": torch.ones(4, 3, 3, 3),
    "external_block.op.weight": torch.ones(8, 5, 3, 3),
    "out.2.weight": torch.ones(6, 4, 3, 3),
}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (UNET, "a UNet of guided-diffusion (width 4, conditioned on embeddings of 5 channels (8 in the middle)"),
        ({"state": {}, "param_groups": []}, "the state of an optimizer, not a model"),
        ({"a": torch.ones(1)}, "the weights of a model that is not known here"),
        ({"state_dict": {"a": 1}, "pytorch-lightning_version": "1"}, "a model that is neither VQGAN nor GumbelVQ"),
        ({}, "nothing, no model known here"),
        ([1, 2], "a list, no model known here"),
        ({"x": 1, "y": 2}, "a dictionary with the keys x, y, no model known here"),
        (argparse.Namespace(x=1), "a Namespace, no model known here"),
        ({"hparams": {}, "vae_params": None, "weights": "see elsewhere"}, "its weights are not in this file: see else"),
        ({"hparams": {}, "vae_params": None, "weights": {}}, "this is not a DALLE of dalle-pytorch"),
        ({"hparams": {}, "weights": {"a": torch.ones(1)}}, "missing: codebook.weight"),
        ({"hparams": 3, "weights": {"a": torch.ones(1)}}, "looks like dalle-pytorch-vae, but its content is not"),
        ({"codebook.weight": torch.ones(1), "encoder.0.0.weight": torch.ones(1)}, "a DiscreteVAE without its sizes"),
    ],
)
def test_a_file_of_something_else_says_what_it_holds(tmp_path, value, said):
    with pytest.raises(CheckpointError) as caught:
        read(save(value, tmp_path / "model.pt"))
    assert said in str(caught.value)
    assert "model.pt" in str(caught.value)
    assert "\n" not in str(caught.value)


def npy(path: Path) -> None:
    np.save(path, np.zeros(3))
    path.with_suffix(".pt.npy").rename(path)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.write_bytes(b""), "is an empty file"),
        (lambda p: p.write_text("<!DOCTYPE html><html>Sign in"), "is a web page (HTML), not weights"),
        (lambda p: p.write_text("\n <html>"), "is a web page (HTML), not weights"),
        (lambda p: p.write_text('<?xml version="1.0"?><Error>'), "is an XML text, not weights"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid"), "is a Git LFS pointer"),
        (lambda p: p.write_text("hello"), "is a text; expected"),
        (lambda p: p.write_text('{"a": 1}'), "is a JSON text; expected"),
        (lambda p: p.write_bytes(b"\x1f\x8b\x08\0"), "is a gzip archive; unpack it first"),
        (lambda p: p.write_bytes(b"\0" * 600), "is neither a PyTorch file nor safetensors"),
        (lambda p: p.write_bytes(b"PK\x03\x04" + b"\0" * 100), "is a zip archive that ends too early"),
        (lambda p: Image.new("RGB", (2, 2)).save(p, format="PNG"), "is a PNG picture"),
        (npy, "is a NumPy array"),
    ],
)
def test_a_file_that_holds_no_weights_says_what_it_looks_like(tmp_path, write, said):
    path = tmp_path / "dalle.pt"
    write(path)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_foreign_safetensors_file_is_told_from_its_tensors(tmp_path):
    save_file(
        {name: t.clone() for name, t in golden("d_gumbelvq_f8")["state_dict"].items()}, tmp_path / "a.safetensors"
    )
    assert read(tmp_path / "a.safetensors").kind == "gumbel_vq"


def test_what_was_converted_is_read_back_unchanged(tmp_path):
    original = read(save(fork_file(), tmp_path / "dalle.pt"))
    save_checkpoint(original, tmp_path / "ours")
    found = read(tmp_path / "ours")
    assert (found.config, found.source) == (original.config, original.source)
    assert original.codec is not None
    assert found.codec is not None
    for ours, theirs in ((found, original), (found.codec, original.codec)):
        assert ours.state.keys() == theirs.state.keys()
        assert all(torch.equal(ours.state[name], tensor) for name, tensor in theirs.state.items())
