"""DeepSpeed on two CPU processes: every stage trains the same model, is saved whole, and resumes bit for bit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dalle3.checkpoint import read_folder, verify
from tests.train.processes import ROOT, TORCHRUN, finish, losses, start

pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
pytestmark = pytest.mark.slow

CASES = ("plain", "stage0", "stage1", "stage2", "stage3", "autocast", "offload", "average", "native")
NATIVE = {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}, "torch_autocast": {"enabled": False}}
EXACT = ("stage0", "stage1", "stage2", "stage3", "offload")  # the arithmetic of one device


def train(folder: Path, steps: int, cases: tuple[str, ...], *, processes: int = 2) -> str:
    launcher = [*TORCHRUN, str(processes)] if processes > 1 else []
    script = str(ROOT / "tests" / "train" / "zero_cases.py")
    return finish(start([sys.executable, *launcher, script, str(folder), str(steps), *cases]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Four steps of each case; in `cut`, steps 3 and 4 made by other processes than 1 and 2."""
    whole, cut = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cut")
    (whole / "native.json").write_text(json.dumps(NATIVE))
    train(whole, 4, CASES)
    shutil.copytree(whole, cut, dirs_exist_ok=True)
    for case in CASES:
        shutil.rmtree(cut / case / "step-00000004")
    shutil.copytree(cut / "stage2", cut / "alone")
    train(cut, 4, CASES)
    return whole.parent


def weights(runs: Path, part: str, case: str) -> dict[str, torch.Tensor]:
    return load_file(next(runs.glob(f"{part}*")) / case / "step-00000004" / "model.safetensors")


def measured(runs: Path, part: str, case: str) -> list[dict[str, float]]:
    return losses(next(runs.glob(f"{part}*")) / case)


@pytest.mark.parametrize("case", EXACT)
def test_every_stage_trains_the_model_that_ddp_trains(runs, case):
    for row, expected in zip(measured(runs, "whole", case), measured(runs, "whole", "plain"), strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
    found, expected = weights(runs, "whole", case), weights(runs, "whole", "plain")
    assert found.keys() == expected.keys()
    assert all((found[key] - expected[key]).abs().max() < 1e-3 for key in found)


@pytest.mark.parametrize("case", ["autocast", "native"])
def test_bfloat16_comes_close(runs, case):
    found, expected = (measured(runs, "whole", name)[-1]["loss"] for name in (case, "plain"))
    assert found == pytest.approx(expected, rel=5e-3)
    assert found != expected


def test_float32_weights_are_saved_where_deepspeed_computes_in_bfloat16(runs):
    matrix = weights(runs, "whole", "native")["to_logits.weight"]
    assert matrix.dtype == torch.float32
    assert not torch.equal(matrix, matrix.bfloat16().float())


@pytest.mark.parametrize("case", CASES)
def test_new_processes_resume_bit_for_bit(runs, case):
    assert measured(runs, "cut", case) == measured(runs, "whole", case)
    resumed, expected = weights(runs, "cut", case), weights(runs, "whole", case)
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)


@pytest.mark.parametrize("case", CASES)
def test_each_checkpoint_is_a_whole_model(runs, case):
    verify(read_folder(next(runs.glob("whole*")) / case / "step-00000002"))


def test_the_average_is_kept_where_the_weights_are_divided(runs):
    folder = next(runs.glob("whole*")) / "average" / "step-00000004"
    averaged, raw = load_file(folder / "model.safetensors"), load_file(folder / "train" / "weights.safetensors")
    assert not torch.equal(averaged["to_logits.weight"], raw["to_logits.weight"])
    exact = weights(runs, "whole", "stage3")
    assert all((raw[key] - exact[key]).abs().max() < 1e-3 for key in raw)


def continues(runs: Path, case: str, before: str) -> None:
    """The third step is measured before the optimizer acts; only dropout, drawn for a batch, is another."""
    found, expected = measured(runs, "cut", case)[2], measured(runs, "whole", before)[2]
    assert found["loss"] == pytest.approx(expected["loss"], rel=2e-3)
    assert expected["loss"] < 0.9 * measured(runs, "whole", before)[0]["loss"]


def test_one_process_continues_the_weights_of_two_and_says_what_it_cannot(runs):
    cut = next(runs.glob("cut*"))
    said = train(cut, 4, ("alone",), processes=1)
    assert "is of stage 2 on 2 processes and cannot be used for stage 2 on 1: the weights continue" in said
    continues(runs, "alone", "stage2")


def test_a_run_under_deepspeed_continues_without_it(runs):
    cut = next(runs.glob("cut*"))
    shutil.copytree(cut / "stage3", cut / "undivided")
    shutil.rmtree(cut / "undivided" / "step-00000004")
    said = train(cut, 4, ("undivided",), processes=1)
    assert "holds no optimizer state of one device, as under DeepSpeed: the weights continue" in said
    continues(runs, "undivided", "stage3")
