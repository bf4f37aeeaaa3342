"""The model that comes with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dalle3.checkpoint import read_folder
from dalle3.cli import main
from dalle3.shipped import DEFAULT, default_model, located, shipped

MB = 10**6


@pytest.fixture(autouse=True)
def _a_machine_without_models_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("DALLE3_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def size(path):
    with Image.open(path) as image:
        return image.size


def test_it_is_drawn_with_where_none_is_named():
    assert default_model() == shipped()[DEFAULT]


def test_it_takes_at_most_sixty_megabytes():
    assert sum(path.stat().st_size for path in shipped()[DEFAULT].rglob("*") if path.is_file()) < 60 * MB


def test_it_names_what_it_was_trained_on():
    assert "Twemoji" in (shipped()[DEFAULT] / "ATTRIBUTION.md").read_text()


@pytest.mark.parametrize(
    "line",
    [
        "inspect picto",
        "inspect picto/decoder",
        "convert picto/codec out",
        "convert picto out",
        "pack out --dalle_path picto --clip picto/clip --decoder picto/decoder",
    ],
)
def test_every_command_takes_its_name_and_those_of_its_parts(line):
    assert main(line.split()) == 0


@pytest.mark.parametrize("line", ["convert picto out", "pack out --dalle_path picto"])
def test_without_its_clip_it_recommends_no_candidates(line):
    assert read_folder(shipped()[DEFAULT]).recommended.best_of == 16
    assert main(line.split()) == 0
    assert read_folder(Path("out")).recommended.best_of is None


def test_what_lies_here_goes_before_it(tmp_path):
    (tmp_path / DEFAULT).mkdir()
    assert located(Path(DEFAULT)) == Path(DEFAULT)
    assert located(Path(f"{DEFAULT}/clip")) == Path(f"{DEFAULT}/clip")


def test_it_draws_its_example_decodes_it_and_ranks_it():
    assert main(["generate", "--num_images", "1", "--seed", "0", "--clip_sort", "--diffusion", "--output_npy"]) == 0
    (line,) = map(json.loads, Path("outputs/manifest.jsonl").read_text().splitlines())
    assert [size(Path("outputs") / line[name]) for name in ("file", "decoded")] == [(128, 128), (256, 256)]
    assert -1 <= line["score"] <= 1


def test_its_codes_are_decoded_later_too():
    assert main(["generate", "--text", "a red apple", "--num_images", "1", "--output_npy"]) == 0
    assert main(["decode", "--input", "outputs/a_red_apple"]) == 0
    assert size(Path("outputs/a_red_apple/0-decoded.png")) == (256, 256)
