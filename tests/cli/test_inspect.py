"""`dalle3 inspect`: something true about any file, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dalle3.cli import main
from dalle3.output import png_text
from tests import tiny
from tests.convert.test_pickles import Evil
from tests.convert.test_read import UNET
from tests.golden import FOLDER


def facts(capsys, *args: str | Path, code: int = 0) -> dict:
    assert main(["inspect", "--json", *map(str, args)]) == code
    return json.loads(capsys.readouterr().out)


def test_a_dalle_is_described_with_what_it_needs_beside_it(capsys):
    assert main(["inspect", str(FOLDER / "ckpt_fork_dalle.pt")]) == 0
    out = capsys.readouterr().out
    for said in ("dalle-pytorch", "parameters     92,820", "float32: 92,820", "dim: 48", "inside: yes"):
        assert said in out
    assert "a text tokenizer with 100 entries: --bpe_path" in out
    assert "opt_state: the optimizer's moments" in out


def test_the_same_as_json(capsys):
    found = facts(capsys, FOLDER / "ckpt_fork_dalle.pt")
    assert (found["kind"], found["config"]["dim"], found["codec"]["vocab"]) == ("dalle", 48, 64)
    assert "keys" not in found


def test_keys_lists_the_tensors_of_the_file(capsys):
    found = facts(capsys, FOLDER / "ckpt_dvae.pt", "--keys")
    assert found["keys"]["weights.codebook.weight"] == ["float32", [64, 16]]
    assert main(["inspect", str(FOLDER / "ckpt_dvae.pt"), "--keys"]) == 0
    assert "  weights.codebook.weight  float32 (64, 16)" in capsys.readouterr().out


def test_keys_lists_the_tensors_of_a_folder_and_of_a_module(capsys, tmp_path):
    assert "norm.weight" in facts(capsys, tiny.write_model(tmp_path / "a"), "--keys")["keys"]
    assert "blocks.input.w" in facts(capsys, FOLDER / "openai_dvae" / "decoder.pkl", "--keys")["keys"]


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("ckpt_dvae.pt", "discrete_vae"),
        ("d_gumbelvq_f8_lightning.ckpt", "gumbel_vq"),
        ("clip_archive.pt", "clip"),
        ("openai_dvae", "openai_dvae"),
    ],
)
def test_every_kind_is_named(capsys, file, kind):
    assert facts(capsys, FOLDER / file)["kind"] == kind


def test_our_folder_with_all_its_parts_needs_nothing(capsys, tmp_path):
    found = facts(capsys, tiny.write_model(tmp_path / "a"))
    assert found["tokenizer"]["kind"] == "huggingface"
    assert found["format"] == "dalle3"
    assert "needs" not in found


def test_a_pickle_that_would_run_a_command_lists_what_it_names_and_runs_nothing(capsys, tmp_path):
    torch.save({"a": torch.ones(1), "x": Evil(tmp_path / "trace")}, tmp_path / "evil.pt")
    found = facts(capsys, tmp_path / "evil.pt", code=1)
    assert f"{os.system.__module__}.system" in found["globals"]
    assert "refused: it names" in found["problem"]
    assert not (tmp_path / "trace").exists()


def test_a_unet_is_recognised(capsys, tmp_path):
    torch.save(UNET, tmp_path / "model016000.pt")
    found = facts(capsys, tmp_path / "model016000.pt", code=1)
    assert found["format"] == "guided-diffusion"
    assert "width 4, conditioned on embeddings of 5 channels" in found["holds"]
    assert "they fit no published model; say its layout with `dalle3 convert`" in found["problem"]


def test_an_unknown_state_dict_is_measured(capsys, tmp_path):
    torch.save({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.float16)}, tmp_path / "a.pt")
    found = facts(capsys, tmp_path / "a.pt", "--keys")
    assert found["numbers"] == {"float32": 3, "float16": 2}
    assert found["keys"] == {"a": ["float32", [3]], "b": ["float16", [2]]}


def test_something_else_in_a_pickle_is_a_problem(capsys, tmp_path):
    torch.save([1, {"b": torch.ones(2)}], tmp_path / "a.pt")
    assert facts(capsys, tmp_path / "a.pt", code=1)["parameters"] == 2


def test_a_list_that_contains_itself_comes_to_an_end(capsys, tmp_path):
    value: list = [torch.ones(2)]
    value.append(value)
    torch.save(value, tmp_path / "a.pt")
    assert "a list" in facts(capsys, tmp_path / "a.pt", code=1)["holds"]


def test_half_a_dvae_says_what_is_missing(capsys, tmp_path):
    (tmp_path / "encoder.pkl").write_bytes((FOLDER / "openai_dvae" / "encoder.pkl").read_bytes())
    found = facts(capsys, tmp_path / "encoder.pkl", code=1)
    assert found["holds"] == "a half of OpenAI's dVAE"
    assert "decoder.pkl: no such file" in found["problem"]


def test_codes_are_measured(capsys, tmp_path):
    np.save(tmp_path / "0.npy", np.arange(256))
    found = facts(capsys, tmp_path / "0.npy")
    assert (found["shape"], found["lowest"], found["highest"]) == ([256], 0, 255)
    np.save(tmp_path / "1.npy", np.ones(3))
    assert "image codes are integers" in facts(capsys, tmp_path / "1.npy", code=1)["problem"]


def test_an_array_of_objects_is_not_unpickled(capsys, tmp_path):
    np.save(tmp_path / "0.npy", np.array([Evil(tmp_path / "trace")], dtype=object), allow_pickle=True)
    assert main(["inspect", str(tmp_path / "0.npy")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "trace").exists()


def test_a_picture_gives_its_recipe(capsys, tmp_path):
    picture = Image.new("RGB", (4, 4))
    picture.save(tmp_path / "0.png", pnginfo=png_text({"prompt": "a red circle", "seed": 7}))
    picture.save(tmp_path / "1.png")
    assert facts(capsys, tmp_path / "0.png")["recipe"]["prompt"] == "a red circle"
    assert facts(capsys, tmp_path / "1.png")["holds"] == "a picture without a recipe of dalle3"


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"hello", b"PK\x03\x04", b"\x80\x02}", b"\x93NUMPY", b"\x89PNG\r\n\x1a\n"]
)
def test_a_broken_file_is_one_line_and_exit_code_2(capsys, tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    assert main(["inspect", str(tmp_path / "a.pt")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"dalle3 inspect: {tmp_path / 'a.pt'}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_the_command_itself_answers():
    code = "import sys; from dalle3.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "inspect", str(FOLDER / "ckpt_dvae.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "discrete_vae" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error():
    code = "import sys; from dalle3.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "inspect", str(FOLDER / "ckpt_fork_dalle.pt"), "--keys"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
