"""Half precision: what float16 cannot hold is skipped, what never gets better stops the run."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from dalle3.errors import ConfigError, TrainingError
from dalle3.train.launch import LaunchConfig, meet
from dalle3.train.loop import LoopConfig
from dalle3.train.optim import OptimConfig
from dalle3.train.parallel import SingleDevice
from tests.train.conftest import TASKS, fit
from tests.train.test_loop import loop, measured, same_weights

OPTIM = OptimConfig(learning_rate=1e-3, ema_decay=0.9)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["vae", "dalle", "clip", "upsampler", "vqgan"])
def test_every_model_trains_in_half_precision_and_stays_float32(kind, dtype, tmp_path):
    task = TASKS[kind]()
    fit(task, tmp_path / "half", loop=loop(steps=2, dtype=dtype), optim=OPTIM)
    fit(TASKS[kind](), tmp_path / "whole", loop=loop(steps=2), optim=OPTIM)
    assert {weights.dtype for weights in task.model.parameters()} == {torch.float32}
    half, whole = (measured(tmp_path / name) for name in ("half", "whole"))
    assert half[0]["loss"] == pytest.approx(whole[0]["loss"], rel=0.02)
    assert half[1]["loss"] != whole[1]["loss"]
    assert ("loss_scale" in half[0]) == (dtype == "float16")


def test_a_run_in_float16_resumes_bit_for_bit_with_its_scale(tmp_path):
    given, optim = {"dtype": "float16", "save_every_n_steps": 3}, OPTIM
    fit(TASKS["dalle"](), tmp_path / "run", loop=loop(**given), optim=optim)
    before = measured(tmp_path / "run")
    (tmp_path / "run" / "step-00000006").rename(tmp_path / "kept")
    state = tmp_path / "run" / "step-00000003" / "train" / "loss_scale.json"
    assert json.loads(state.read_text())["_growth_tracker"] == 3
    resumed = fit(TASKS["dalle"](), tmp_path / "run", resume="auto", loop=loop(**given), optim=optim)
    assert same_weights(tmp_path / "kept", resumed.checkpoint)
    assert measured(tmp_path / "run") == before


class Scaled(nn.Module):
    """A loss whose gradient is `size` at each weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(2))

    def forward(self, size: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return (self.weights * size).sum(), {}


def step(parallel: SingleDevice, size: float) -> float | None:
    loss, _ = parallel.forward({"size": size})
    parallel.backward(loss)
    return parallel.step(learning_rate=0.1, clip=0.0)


def test_a_step_that_float16_cannot_hold_changes_the_scale_alone():
    model, parallel = Scaled(), SingleDevice(torch.device("cpu"), dtype=torch.float16)
    parallel.wrap(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert (step(parallel, 1e35), parallel.loss_scale()) == (None, 2.0**15)  # at 2 ** 16 times, beyond float32 too
    assert torch.equal(model.weights.detach(), torch.ones(2))
    assert step(parallel, 1.0) == pytest.approx(2**0.5)
    torch.testing.assert_close(model.weights.detach(), torch.full((2,), 0.9))


def test_gradients_that_no_scale_helps_are_told_as_they_are():
    model, parallel = Scaled(), SingleDevice(torch.device("cpu"), dtype=torch.float16)
    parallel.wrap(model, torch.optim.SGD(model.parameters(), lr=0.1))
    found = [step(parallel, float("inf")) for _ in range(17)]
    assert found == [None] * 16 + [float("inf")]


def test_a_skipped_step_does_not_stop_a_run_but_a_loss_that_is_no_number_does(tmp_path):
    task, calls = TASKS["dalle"](), []
    forward = task.objective.forward

    def steep(**inputs):
        calls.append(1)
        loss, metrics = forward(**inputs)
        cliff = task.model.norm.weight.sum() * 1e35  # a large gradient that leaves the loss as it is
        return (loss + cliff - cliff.detach() if len(calls) == 3 else loss), metrics

    task.objective.forward = steep
    fit(task, tmp_path / "steep", loop=loop(dtype="float16", ga_steps=1, steps=3), optim=OPTIM)
    assert [row["loss_scale"] for row in measured(tmp_path / "steep")] == [2.0**16, 2.0**15, 2.0**15]
    assert ["grad_norm" in row for row in measured(tmp_path / "steep")] == [True, False, True]
    task.objective.forward = lambda **inputs: (forward(**inputs)[0] * float("nan"), {})
    with pytest.raises(TrainingError, match="step 1: the loss is nan"):
        fit(task, tmp_path / "nan", loop=loop(dtype="float16"), optim=OPTIM)


@pytest.mark.parametrize(
    ("launch", "loops", "optim", "message"),
    [
        ({}, {"dtype": "float16"}, {}, "float16, whose loss scale DeepSpeed does not save; take bfloat16"),
        ({"zero_stage": 1}, {}, {"optimizer": "Muon"}, "needs whole matrices, and ZeRO stage 1 cuts them; take AdamW"),
        ({"zero_stage": 3}, {"compile": True}, {}, "ZeRO stage 3 divides; leave out --compile"),
    ],
)
def test_what_deepspeed_cannot_do_is_said(launch, loops, optim, message):
    given = LaunchConfig(deepspeed=True, **launch), LoopConfig(**loops), OptimConfig(**optim)
    with pytest.raises(ConfigError, match=message):
        meet(*given, device=torch.device("cpu"))
