"""The splits of picto as tars of their own."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from dalle3.data.open import open_pictures
from recipes.picto import repack
from recipes.picto.samples import add_file
from recipes.picto.subsets import HELD_OUT, main, write_subsets


@pytest.fixture
def data(tmp_path) -> Path:
    """A data set of three pictures in val, and one in each withheld split."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, kinds in {"val": ("single", "char", "single"), **dict.fromkeys(HELD_OUT, ("pair",))}.items():
        with tarfile.open(folder / f"{split}-00000.tar", "w") as tar:
            for number, kind in enumerate(kinds):
                file = io.BytesIO()
                Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "PNG")
                add_file(tar, f"{kind}-{number}.png", file.getvalue())
                add_file(tar, f"{kind}-{number}.txt", f"{split} {number}".encode())
                add_file(tar, f"{kind}-{number}.json", json.dumps({"kind": kind}).encode())
    return folder


def test_val_is_there_whole_and_by_kind_and_the_withheld_splits_beside_it(data, tmp_path):
    counts = write_subsets(data, tmp_path / "out")
    assert counts == {"val": 3, **dict.fromkeys(HELD_OUT, 1), "val_char": 1, "val_single": 2}
    single = open_pictures(str(tmp_path / "out" / "val_single.tar"))
    assert [single.load(index).captions for index in range(2)] == [("val 0",), ("val 2",)]


def test_what_is_no_data_set_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no val-*.tar" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", [main, repack.main])
def test_a_tar_that_was_cut_is_one_line(program, data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "cut")
    whole = (tmp_path / "cut" / "val-00000.tar").read_bytes()
    (tmp_path / "cut" / "val-00000.tar").write_bytes(whole[:700])
    assert program([str(tmp_path / "cut"), str(tmp_path / "out")]) == 2
    assert "val-00000.tar is no whole tar (unexpected end of data)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
