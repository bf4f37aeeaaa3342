"""`dalle3 train`: folders of pictures in, a model folder that can draw out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dalle3.cli import main
from dalle3.data.folder import CaptionedFolder
from recipes.shapes.source import Scenes

LOOP = {"steps": 2, "batch_size": 2, "log_every_n_steps": 1, "sample_every_n_steps": 2, "device": "cpu"}
VAE = {"image_size": 16, "num_layers": 2, "num_tokens": 16, "hidden_dim": 8, "codebook_dim": 8}
TAMING_NET = {"resolution": 16, "ch": 32, "ch_mult": "1,1", "num_res_blocks": 1, "attn_resolutions": 8}
TAMING_CODES = {"num_tokens": 16, "embed_dim": 8, "z_channels": 8, "disc_ndf": 4, "disc_num_layers": 1}
TAMING = {**TAMING_NET, **TAMING_CODES}
UNET = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "attention_resolutions": 4, "diffusion_steps": 30}
DALLE = {"train_bpe": 128, "text_seq_len": 32, "image_grid": 4, "dim": 16, "depth": 1, "heads": 1, "dim_head": 16}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    scenes, folder = Scenes(6, size=16, kind="one"), tmp_path / "pictures"
    folder.mkdir()
    for index in range(len(scenes)):
        sample = scenes.load(index)
        sample.content.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("\n".join(sample.captions))
    assert len(CaptionedFolder(folder)) == 6
    return folder


def train(kind: str, *switches: str, **flags: object) -> int:
    given = [str(part) for name, value in {**LOOP, **flags}.items() for part in (f"--{name}", value)]
    return main(["train", kind, *given, *(f"--{name}" for name in switches)])


def test_an_image_tokenizer_and_a_dalle_train_by_one_command_each(tmp_path, pictures, capfd):
    assert train("vae", image_text_folder=pictures, out=tmp_path / "vae", **VAE) == 0
    flags = {"vae_path": tmp_path / "vae" / "step-00000002", "image_text_folder": pictures, **DALLE}
    assert train("dalle", out=tmp_path / "dalle", **flags) == 0
    assert (tmp_path / "dalle" / "step-00000002" / "codec" / "model.safetensors").is_file()
    assert (tmp_path / "dalle" / "samples" / "step-00000002.png").is_file()
    assert "done" in capfd.readouterr().err
    assert train("dalle", out=tmp_path / "dalle", **flags) == 2
    assert "holds a run; pass --resume auto" in capfd.readouterr().err
    assert train("dalle", out=tmp_path / "dalle", resume="auto", **{**flags, "dim": 32}) == 2
    assert "begun with model dim 16, now 32; leave that as it was" in capfd.readouterr().err


def test_a_decoder_and_an_upsampler_train_by_one_command_each(tmp_path, pictures, capfd):
    train("vae", image_text_folder=pictures, out=tmp_path / "vae", **{**VAE, "num_layers": 1})
    flags = {"image_text_folder": pictures, "held_out": pictures, **UNET}
    vae = tmp_path / "vae" / "step-00000002"
    seeing = {"channel_mult": "1,1,1", "prediction": "v", "spread": 0.1, "crop": 8}
    assert train("diffusion", "low_res", out=tmp_path / "decoder", vae_path=vae, **seeing, **flags) == 0
    assert json.loads((tmp_path / "decoder" / "step-00000002" / "config.json").read_text())["config"]["spread"] == 0.1
    assert train("upsampler", out=tmp_path / "upsampler", small_size=4, channel_mult="1,1", **flags) == 0
    assert (tmp_path / "decoder" / "step-00000002" / "codec" / "model.safetensors").is_file()
    assert (tmp_path / "upsampler" / "samples" / "step-00000002.png").is_file()
    changed = {**flags, "resume": "auto", "prediction": "v"}
    assert train("upsampler", out=tmp_path / "upsampler", small_size=4, channel_mult="1,1", **changed) == 2
    assert "begun with model prediction 'epsilon', now 'v'; leave that as it was" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["vqgan", "gumbel_vq"])
def test_a_tokenizer_of_taming_trains_by_one_command(kind, tmp_path, pictures, capfd):
    assert train(kind, image_text_folder=pictures, out=tmp_path / kind, disc_start=1, **TAMING) == 0
    assert capfd.readouterr().err.count("no --lpips_path, so no perceptual loss") == 1
    assert (tmp_path / kind / "samples" / "step-00000002.png").is_file()
    missing = {"lpips_path": tmp_path / "vgg16.ckpt", "out": tmp_path / "other"}
    assert train(kind, image_text_folder=pictures, **missing, **TAMING) == 2
    assert "vgg16.ckpt: no such file" in capfd.readouterr().err


def test_weights_that_a_discriminator_needs_are_not_divided_by_flag_nor_file(tmp_path, pictures, capfd):
    settings = tmp_path / "settings.json"
    settings.write_text('{"zero_optimization": {"stage": 3}}')
    sizes = [f"--{name}={value}" for name, value in TAMING.items()]
    for switch in ("--zero_stage=3", f"--deepspeed_config={settings}"):
        divided = [*sizes, "--deepspeed", switch]
        assert main(["train", "vqgan", "--image_text_folder", str(pictures), "--device=cpu", *divided]) == 2
        assert "zero_stage is 3, which divides weights that the discriminator" in capfd.readouterr().err
    settings.write_text('{"zero_optimization": 3}')
    assert main(["train", "vqgan", "--image_text_folder", str(pictures), "--device=cpu", *divided]) == 2
    assert "zero_optimization 3 is no JSON object" in capfd.readouterr().err


def test_flags_of_the_network_are_explained(capfd):
    with pytest.raises(SystemExit):
        main(["train", "upsampler", "--help"])
    shown = " ".join(capfd.readouterr().out.split())
    assert "--num_res_blocks NUM_RES_BLOCKS of each level, on the way down; one more on the way up" in shown
    assert "--prediction {epsilon,x0,v}" in shown


def test_a_model_that_does_not_speak_the_codes_is_refused(tmp_path, pictures, capfd):
    train("vae", image_text_folder=pictures, out=tmp_path / "vae", **VAE)
    flags = {"vae_path": tmp_path / "vae" / "step-00000002", "image_text_folder": pictures, **DALLE}
    assert train("dalle", out=tmp_path / "dalle", num_image_tokens=99, **flags) == 2
    assert "num_image_tokens is 99, but the image tokenizer has 16 entries" in capfd.readouterr().err


def test_an_empty_folder_is_one_line(tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    assert train("vae", image_text_folder=tmp_path / "empty", out=tmp_path / "run") == 2
    assert "holds no pictures; it should hold" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
