"""`dalle3 convert`: any file becomes a folder that needs nothing else, or says what it needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dalle3.checkpoint import describe_codec, read_folder, save_checkpoint
from dalle3.cli import main
from dalle3.convert import read
from tests import tiny
from tests.golden import FOLDER

GUMBEL = FOLDER / "d_gumbelvq_f8_lightning.ckpt"
DALLE = FOLDER / "ckpt_fork_dalle.pt"


def convert(*args: str | Path) -> int:
    return main(["convert", *map(str, args)])


def refused(capsys, *args: str | Path) -> str:
    """The one line that says why these arguments cannot be."""
    assert convert(*args) == 2
    said = capsys.readouterr().err
    assert said.startswith("dalle3 convert: ")
    assert said.count("\n") == 1
    return said


def without_codec(path: Path) -> Path:
    raw = torch.load(DALLE, weights_only=True)
    raw["weights"] = {name: t for name, t in raw["weights"].items() if not name.startswith("vae.")}
    torch.save(raw | {"vae_params": None}, path)
    return path


def words(folder: Path, count: int) -> Path:
    """A tokenizers JSON of `count` words."""
    folder.mkdir()
    words = tiny.tokenizer()
    words.save(folder)
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text())
    told["model"]["vocab"] = {"[UNK]": 0, **{f"word{i}": i for i in range(1, count)}}
    path.write_text(json.dumps(told))
    return path


def test_a_dalle_becomes_a_folder_with_its_image_tokenizer(capsys, tmp_path):
    assert convert(DALLE, tmp_path / "ours") == 0
    out = capsys.readouterr().out
    assert "dalle, 92,820 parameters" in out
    assert "with discrete_vae" in out
    assert "left out: opt_state: " in out
    assert "needs beside it: a text tokenizer with 100 entries" in out
    found, original = read_folder(tmp_path / "ours"), read(DALLE)
    assert all(torch.equal(found.state[name], tensor) for name, tensor in original.state.items())
    assert found.codec is not None
    assert found.codec_info == describe_codec(found.codec, grid=16)
    assert found.source == original.source


def test_the_text_tokenizer_is_put_beside_it(capsys, tmp_path):
    path = words(tmp_path / "words", 100)
    assert convert(DALLE, tmp_path / "ours", "--bpe_path", path, "--hug") == 0
    assert "needs" not in capsys.readouterr().out
    assert read_folder(tmp_path / "ours").tokenizer == {
        "kind": "huggingface",
        "vocab_size": 100,
        "file": "tokenizer.json",
    }


def test_the_image_tokenizer_is_put_beside_it(capsys, tmp_path):
    dalle = without_codec(tmp_path / "dalle.pt")
    yaml = GUMBEL.with_suffix(".yaml")
    shutil.copy(GUMBEL, tmp_path / "last.ckpt")
    flags = ("--vqgan_model_path", tmp_path / "last.ckpt", "--vqgan_config_path", yaml)
    assert convert(dalle, tmp_path / "ours", *flags) == 0
    found = read_folder(tmp_path / "ours")
    assert found.codec is not None
    assert (found.codec.kind, found.codec.config.resolution) == ("gumbel_vq", 128)
    assert found.codec_info == describe_codec(found.codec, grid=16)


def test_the_weights_take_the_number_format_asked_for(tmp_path):
    assert convert(GUMBEL, tmp_path / "ours", "--dtype", "float32") == 0
    assert {tensor.dtype for tensor in read_folder(tmp_path / "ours").state.values()} == {torch.float32}


def test_our_own_folder_is_converted_with_its_tokenizer(tmp_path):
    assert convert(tiny.write_model(tmp_path / "a"), tmp_path / "b", "--dtype", "bfloat16") == 0
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == (tmp_path / "a" / "tokenizer.json").read_bytes()
    assert read_folder(tmp_path / "b").state["norm.weight"].dtype == torch.bfloat16


def test_a_clip_keeps_its_tokenizer_and_can_be_given_one(tmp_path):
    own = tiny.write_model(tmp_path / "a") / "clip"
    assert convert(own, tmp_path / "b") == 0
    assert convert(FOLDER / "clip_archive.pt", tmp_path / "c", "--bpe_path", own / "tokenizer.json", "--hug") == 0
    for folder in ("b", "c"):
        assert (tmp_path / folder / "tokenizer.json").is_file()
        assert read_folder(tmp_path / folder).tokenizer == read_folder(own).tokenizer


def test_an_image_tokenizer_of_another_size_is_refused(capsys, tmp_path):
    save_checkpoint(tiny.codec(), tmp_path / "vae")
    dalle = without_codec(tmp_path / "dalle.pt")
    said = refused(capsys, dalle, tmp_path / "ours", "--vae_path", tmp_path / "vae")
    assert "vocab 64, not 16" in said
    assert not (tmp_path / "ours").exists()


def test_a_text_tokenizer_of_another_size_is_refused(capsys, tmp_path):
    path = words(tmp_path / "words", 99)
    said = refused(capsys, DALLE, tmp_path / "ours", "--bpe_path", path, "--hug")
    assert "reads text of 100 tokens" in said
    assert "99" in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((GUMBEL, "--vae_path", GUMBEL), "is a gumbel_vq, beside which no image tokenizer belongs"),
        ((GUMBEL, "--hug"), "is a gumbel_vq, which reads no text"),
        ((DALLE, "--vae_path", DALLE), "is a dalle, not an image tokenizer"),
        ((DALLE, "--vae_path", GUMBEL, "--vqgan_model_path", GUMBEL), "both name the image tokenizer"),
        (("nowhere.pt",), "nowhere.pt: no such file"),
    ],
)
def test_arguments_that_do_not_go_together_are_one_line(capsys, tmp_path, args, said):
    file, *flags = args
    assert said in refused(capsys, file, tmp_path / "ours", *flags)
    assert not (tmp_path / "ours").exists()


def test_a_folder_that_holds_something_is_left_alone(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "exists already" in refused(capsys, DALLE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
