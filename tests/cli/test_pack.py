"""A model packed to ship, and found by its name."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import dalle3
from dalle3.assemble_decoder import load_decoder
from dalle3.checkpoint import read_folder, save_checkpoint
from dalle3.cli import main
from dalle3.sampling import Recommended
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


BEST = "--cond_scale 3 --top_p 0.95 --example 'a blue star' --steps 3 --guidance_scale 1.5"


def recipe(path: str) -> dict:
    return json.loads(Image.open(path).text["dalle3"])  # type: ignore[attr-defined]


def test_a_packed_model_draws_its_example_as_it_recommends_and_says_so(parts, assets, capsys):
    pack(parts, assets / "picto", BEST)
    assert main(["generate", *shlex.split("--num_images 1 --diffusion --seed 0")]) == 0
    said = capsys.readouterr().err.splitlines()
    assert "no --text was given; drawing an example: --text 'a blue star'" in said
    assert "the model's own settings: top_p 0.95, cond_scale 3" in said
    assert "the decoder's own settings: guidance_scale 1.5" in said
    drawn, decoded = (recipe(f"outputs/a_blue_star/0{ending}.png")["settings"] for ending in ("", "-decoded"))
    assert (drawn["cond_scale"], drawn["top_p"]) == (3.0, 0.95)
    assert (decoded["guidance_scale"], decoded["timesteps"]) == (1.5, 3)


def test_flags_and_lines_of_a_prompts_file_go_before_what_a_model_recommends(parts, assets, capsys):
    pack(parts, assets / "picto", BEST)
    Path("prompts").write_text('{"text": "a star", "top_k": 5}\n{"text": "a circle"}\n')
    line = "--prompts_file prompts --cond_scale 1 --num_images 1 --diffusion --guidance_scale 1"
    assert main(["generate", *shlex.split(line)]) == 0
    assert [text for text in capsys.readouterr().err.splitlines() if "own settings" in text] == [
        "the model's own settings: top_p 0.95"
    ]
    star, circle = (recipe(f"outputs/{name}/0.png")["settings"] for name in ("a_star", "a_circle"))
    assert (star["cond_scale"], star["top_p"], star["top_k"]) == (1.0, None, 5.0)
    assert (circle["cond_scale"], circle["top_p"], circle["top_k"]) == (1.0, 0.95, None)
    assert recipe("outputs/a_star/0-decoded.png")["settings"]["guidance_scale"] == 1.0


def test_packing_again_keeps_what_is_recommended_but_for_what_is_said_anew(parts, assets):
    pack(parts, assets / "picto", BEST)
    line = f"again --dalle_path {assets}/picto --decoder {assets}/picto/decoder --top_k 9 --best_of 4 --sampler ddim"
    assert main(["pack", *shlex.split(line)]) == 2  # nobody could choose
    assert main(["pack", *shlex.split(f"{line} --clip {assets}/picto/clip")]) == 0
    expected = Recommended(cond_scale=3.0, top_k=9.0, example="a blue star", best_of=4)
    assert read_folder(Path("again")).recommended == expected
    how = read_folder(Path("again/decoder")).config
    assert (how.respacing, how.sampler, how.guidance_scale) == ("angle3", "ddim", 1.5)


def test_inspect_shows_what_a_model_recommends(parts, assets, capsys):
    pack(parts, assets / "picto", BEST)
    capsys.readouterr()
    assert main(["inspect", str(assets / "picto"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["recommended"]
    assert found == {"top_p": 0.95, "cond_scale": 3.0, "example": "a blue star"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--top_p 2", "top_p is 2.0; it must be above 0 and at most 1"),
        ("--example ' '", "example is empty"),
        ("--steps 2000", "steps is 2000; the chain has 1000"),
        ("--guidance_scale -1", "guidance_scale is -1.0; it must be a number from 0 on"),
    ],
)
def test_a_recommendation_that_cannot_be_is_one_line_and_nothing_is_written(parts, assets, capsys, flags, said):
    assert pack(parts, assets / "picto", flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (assets / "picto").exists()


def test_how_to_decode_is_of_use_with_a_decoder_only(parts, assets, capsys):
    assert main(["pack", "out", "--dalle_path", f"{parts}/dalle", "--steps", "3"]) == 2
    assert "name it with --decoder" in capsys.readouterr().err


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


def test_an_image_tokenizer_with_a_finer_decoder_takes_the_place_of_the_dalles(parts, tmp_path, capsys):
    finer, decoder = tiny.codec(), tiny.decoder()
    finer.state = {name: tensor + name.startswith("decoder.") for name, tensor in finer.state.items()}
    save_checkpoint(finer, tmp_path / "finer")
    line = f"{tmp_path}/out --dalle_path {parts}/dalle --vae_path {tmp_path}/finer"
    assert main(["pack", *shlex.split(f"{line} --decoder {parts}/decoder")]) == 2  # it was trained on other pictures
    assert "do not belong together" in capsys.readouterr().err
    decoder.codec = finer
    save_checkpoint(decoder, tmp_path / "decoder")
    assert main(["pack", *shlex.split(f"{line} --decoder {tmp_path}/decoder")]) == 0
    codec = read_folder(tmp_path / "out" / "codec").state
    assert all(torch.equal(codec[name], tensor.to(torch.bfloat16)) for name, tensor in finer.state.items())
    assert dalle3.load(tmp_path / "out").generate("a red circle", n=1, seed=0)[0].codes is not None


def test_the_packed_image_tokenizer_is_known_by_its_new_hash(parts, assets):
    pack(parts, assets / "picto")
    model, decoder = read_folder(assets / "picto"), read_folder(assets / "picto" / "decoder")
    assert model.codec_info == decoder.codec_info
    assert model.codec_info["sha256"] != read_folder(parts / "dalle").codec_info["sha256"]
