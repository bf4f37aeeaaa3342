"""Two processes under torchrun are one run: the same losses, and either continues the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.train.processes import command, finish, losses, material, start

FLAGS = {"steps": 4, "save_every_n_steps": 2, "ema_decay": 0.9, "ga_steps": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Four steps of one process, of two, and of two that one continues after half."""
    folder = tmp_path_factory.mktemp("runs")
    given = {**material(folder), **FLAGS}
    one, two, cut = folder / "one", folder / "two", folder / "cut"
    both = [
        start(command(1, **given, batch_size=4, dalle_output_file_name=one)),
        start(command(2, **given, batch_size=2, dalle_output_file_name=two)),
    ]
    for process in both:
        finish(process)
    finish(start(command(2, **{**given, "steps": 2}, batch_size=2, dalle_output_file_name=cut)))
    finish(start(command(1, **given, batch_size=4, dalle_output_file_name=cut, resume="auto")))
    return folder


def close(one: Path, other: Path) -> None:
    rows = zip(losses(one), losses(other), strict=True)
    for row, expected in rows:
        assert row == pytest.approx(expected, rel=1e-5)


def test_two_processes_measure_what_one_does(runs):
    close(runs / "two", runs / "one")


def test_a_run_of_two_processes_continues_on_one(runs):
    close(runs / "cut", runs / "one")


@pytest.mark.parametrize("name", ["model.safetensors", "train/weights.safetensors"], ids=["average", "weights"])
@pytest.mark.parametrize("run", ["two", "cut"])
def test_the_weights_are_those_of_one_process(runs, run, name):
    found, expected = (load_file(runs / which / "step-00000004" / name) for which in (run, "one"))
    assert found.keys() == expected.keys()
    assert all((found[key] - expected[key]).abs().max() < 1e-4 for key in found)


def test_only_one_process_writes(runs):
    assert [row["step"] for row in losses(runs / "two")] == [1, 2, 3, 4]
    assert not list((runs / "two").glob("*.partial"))
