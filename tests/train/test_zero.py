"""DeepSpeed on two CPU processes: every stage trains the same model, is saved whole, and resumes bit for bit."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dalle3.checkpoint import read_folder, verify
from tests.train.conftest import clip_task, vae
from tests.train.processes import ROOT, TORCHRUN, finish, losses, start
from tests.train.zero_cases import run

pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
pytestmark = pytest.mark.slow

DIVIDED = {
    "clip": ("stage0", "stage1", "stage2", "stage3"),
    "reward": ("stage1",),
    "vqgan": ("stage2",),
    "gumbel_vq": ("stage1",),
    "vae": ("stage3",),
    "autoencoder": ("stage0",),
    "diffusion": ("stage2",),
    "upsampler": ("stage1",),
    "lora": ("stage2", "stage3"),
    "maps": ("stage2",),
    "reading": ("stage3",),
    "frozen": ("stage0", "stage3"),
}
ALIKE = ("clip-ddp", "autoencoder-ddp", "redrawing-ddp")  # nothing is drawn for a batch
TASK_CASES = (
    *(f"{task}-{stage}" for task, stages in DIVIDED.items() for stage in ("ddp", *stages)),
    *("gradients", "redrawing-ddp", "kmeans"),
)
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
    train(whole, 4, (*CASES, *TASK_CASES))
    shutil.copytree(whole, cut, dirs_exist_ok=True)
    for case in (*CASES, *TASK_CASES):
        shutil.rmtree(cut / case / "step-00000004")
    for begun, continued in (("stage2", "alone"), ("autoencoder-stage0", "alone0"), ("stage3", "undivided")):
        shutil.copytree(cut / begun, cut / continued)
    run(cut, 2, "grown")
    shutil.copytree(cut / "grown", cut / "grown1")
    (cut / "said.txt").write_text(train(cut, 4, (*CASES, *TASK_CASES, "grown", "grown1")))
    return whole.parent


@pytest.fixture(scope="module")
def said_alone(runs) -> str:
    """What one process says that continues what two began."""
    return train(next(runs.glob("cut*")), 4, ("alone", "alone0", "undivided"), processes=1)


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


@pytest.mark.parametrize("case", [*CASES, *TASK_CASES])
def test_new_processes_resume_bit_for_bit(runs, case):
    assert measured(runs, "cut", case) == measured(runs, "whole", case)
    resumed, expected = weights(runs, "cut", case), weights(runs, "whole", case)
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)


@pytest.mark.parametrize("case", [*CASES, *TASK_CASES])
def test_each_checkpoint_is_a_whole_model(runs, case):
    verify(read_folder(next(runs.glob("whole*")) / case / "step-00000002"))


def test_the_average_is_kept_where_the_weights_are_divided(runs):
    folder = next(runs.glob("whole*")) / "average" / "step-00000004"
    averaged, raw = load_file(folder / "model.safetensors"), load_file(folder / "train" / "weights.safetensors")
    assert not torch.equal(averaged["to_logits.weight"], raw["to_logits.weight"])
    exact = weights(runs, "whole", "stage3")
    assert all((raw[key] - exact[key]).abs().max() < 1e-3 for key in raw)


def alike(rows: list[dict[str, float]], others: list[dict[str, float]], *, rel: float = 1e-5) -> bool:
    """Whether all steps measure the same, but for previews and the PSNR, of which the mean is one of logarithms."""
    one, other = (
        [{key: value for key, value in row.items() if key != "psnr"} for row in some if "grad_norm" in row]
        for some in (rows, others)
    )
    return one == [pytest.approx(row, rel=rel) for row in other]


def continues(runs: Path, case: str, before: str) -> None:
    """The third step is measured before the optimizer acts; only dropout, drawn for a batch, is another."""
    found, expected = measured(runs, "cut", case)[2], measured(runs, "whole", before)[2]
    assert found["loss"] == pytest.approx(expected["loss"], rel=2e-3)
    assert expected["loss"] < 0.9 * measured(runs, "whole", before)[0]["loss"]


def test_one_process_continues_the_weights_of_two_and_says_what_it_cannot(runs, said_alone):
    assert "is of stage 2 on 2 processes and cannot be used for stage 2 on 1: the weights continue" in said_alone
    continues(runs, "alone", "stage2")


def test_a_run_under_deepspeed_continues_without_it(runs, said_alone):
    assert "holds no optimizer state of one device, as under DeepSpeed: the weights continue" in said_alone
    continues(runs, "undivided", "stage3")


def test_two_processes_continue_the_weights_of_one_under_deepspeed(runs):
    said = (next(runs.glob("cut*")) / "said.txt").read_text()
    assert "is not DeepSpeed's and cannot be used for stage 1 on 2: the weights continue" in said
    found, expected = (measured(runs, *which)[2] for which in (("cut", "grown1"), ("whole", "autoencoder-ddp")))
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("case", ["alone0", "grown"])
def test_what_divides_nothing_continues_whole_on_any_number_of_processes(runs, said_alone, case):
    assert alike(measured(runs, "cut", case), measured(runs, "whole", "autoencoder-ddp"))


@pytest.mark.parametrize("case", [f"{task}-{stage}" for task, stages in DIVIDED.items() for stage in stages])
def test_every_task_trains_divided_as_under_ddp(runs, case):
    assert alike(measured(runs, "whole", case), measured(runs, "whole", f"{case.split('-')[0]}-ddp"), rel=1e-3)


@pytest.mark.parametrize("case", ALIKE)
def test_two_processes_train_what_one_does_with_twice_the_batch(runs, case, tmp_path):
    run(tmp_path, 4, case)
    assert alike(measured(runs, "whole", case), losses(tmp_path / case), rel=1e-4)


def test_contrast_over_two_processes_has_the_gradient_of_one_batch(runs, tmp_path):
    run(tmp_path, 4, "gradients")
    found = weights(runs, "whole", "gradients")
    expected = load_file(tmp_path / "gradients" / "step-00000004" / "model.safetensors")
    first = clip_task().model.state_dict()
    moved = max(float((expected[key] - first[key]).abs().max()) for key in expected)
    assert moved > 0.1
    assert max(float((found[key] - expected[key]).abs().max()) for key in expected) < 1e-5 * moved


def test_ddp_and_the_optimizer_leave_weights_alone_that_have_no_part_in_the_loss(runs):
    path = next(runs.glob("whole*")) / "kmeans" / "step-00000002"
    assert torch.equal(load_file(path / "model.safetensors")["codebook.weight"], vae().codebook.weight)
    remembered = torch.load(path / "train" / "optimizer.pt", weights_only=True)["state"]
    assert len(remembered) == len(list(vae().parameters())) - 3  # not of codebook and logits, a matrix and a bias
    assert "find_unused_parameters" not in (next(runs.glob("cut*")) / "said.txt").read_text()


def test_frozen_weights_are_left_out_of_the_shards(runs):
    folder = next(runs.glob("whole*")) / "lora-stage2" / "step-00000004" / "train" / "shards"
    found = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert found
    assert all(name.endswith((".lora_a", ".lora_b")) for name in found)


@pytest.mark.parametrize("stage", ["ddp", *DIVIDED["clip"]])
def test_the_logit_scale_is_held_wherever_it_is_kept(runs, stage):
    assert weights(runs, "whole", f"clip-{stage}")["logit_scale"] <= math.log(100)
