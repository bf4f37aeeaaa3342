"""A model packed to ship, and found by its name."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import dalle3
from dalle3.assemble_decoder import load_decoder
from dalle3.checkpoint import read_folder, save_checkpoint
from dalle3.cli import main
from tests import tiny


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """Both stages, each as its training leaves it: the decoder with an image tokenizer of its own."""
    folder = tmp_path_factory.mktemp("parts")
    tiny.write_model(folder / "dalle")
    decoder = tiny.decoder()
    decoder.codec = tiny.codec()
    save_checkpoint(decoder, folder / "decoder")
    return folder


@pytest.fixture
def assets(tmp_path, monkeypatch) -> Path:
    """The folder of shipped models of a package that has none."""
    monkeypatch.setenv("DALLE3_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("dalle3.shipped.ASSETS", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "assets"


def pack(parts: Path, out: Path, more: str = "") -> int:
    line = f"{out} --dalle_path {parts}/dalle --clip {parts}/dalle/clip --decoder {parts}/decoder {more}"
    return main(["pack", *shlex.split(line)])


def test_all_parts_are_in_one_folder_in_half_the_bytes(parts, assets, capsys):
    assert pack(parts, assets / "picto") == 0
    for part in ("", "codec", "clip", "decoder"):
        with safe_open(assets / "picto" / part / "model.safetensors", "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert not (assets / "picto" / "decoder" / "codec").exists()
    assert capsys.readouterr().out.startswith(f"{assets / 'picto'}: ")


def test_a_packed_model_draws_and_decodes_in_float32_with_the_weights_as_stored(parts, assets):
    pack(parts, assets / "picto")
    model, whole = dalle3.load(), dalle3.load(parts / "dalle")
    assert model.dalle.to_logits.weight.dtype == torch.float32
    rounded = whole.dalle.to_logits.weight.to(torch.bfloat16).float()
    assert torch.equal(model.dalle.to_logits.weight, rounded)
    picture = model.generate("a red circle", n=2, seed=0, keep=1)[0]
    assert picture.codes.shape == (tiny.GRID, tiny.GRID)
    assert load_decoder().unet is not None


def test_a_model_of_the_package_is_found_by_name_and_by_default(parts, assets):
    pack(parts, assets / "picto")
    by_name, by_default = (dalle3.load(name).generate("a red circle", n=1, seed=3)[0].codes for name in ("picto", None))
    assert np.array_equal(by_name, by_default)


def test_a_folder_here_goes_before_a_model_of_the_package(parts, assets):
    pack(parts, assets / "picto")
    Path("picto").mkdir()
    with pytest.raises(dalle3.errors.CheckpointError):  # type: ignore[attr-defined]
        dalle3.load("picto")


def test_generate_and_decode_need_no_path(parts, assets):
    pack(parts, assets / "picto")
    line = "--text 'a red circle' --num_images 1 --seed 0 --diffusion --steps 2 --output_npy"
    assert main(["generate", *shlex.split(line)]) == 0
    assert main(["decode", "--input", "outputs/a_red_circle/0.npy", "--steps", "2"]) == 0
    assert len(list(Path("outputs/a_red_circle").glob("*-decoded*.png"))) == 2


def test_what_is_too_large_is_refused_with_the_sizes_and_not_written(parts, assets, capsys):
    assert pack(parts, assets / "picto", "--most_mb 0.001") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--most_mb is 0.001" in line
    assert "clip/model.safetensors" in line
    assert not (assets / "picto").exists()


def test_a_decoder_of_another_image_tokenizer_is_refused(parts, assets, capsys, tmp_path):
    stranger = tiny.decoder()
    stranger.codec = tiny.codec(seed=1)
    save_checkpoint(stranger, tmp_path / "stranger")
    line = f"out --dalle_path {parts}/dalle --decoder stranger"
    assert main(["pack", *shlex.split(line)]) == 2
    assert "do not belong together" in capsys.readouterr().err


def test_the_packed_image_tokenizer_is_known_by_its_new_hash(parts, assets):
    pack(parts, assets / "picto")
    model, decoder = read_folder(assets / "picto"), read_folder(assets / "picto" / "decoder")
    assert model.codec_info == decoder.codec_info
    assert model.codec_info["sha256"] != read_folder(parts / "dalle").codec_info["sha256"]
