"""The loop: a resumed run is the same run, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dalle3.checkpoint import read_folder
from dalle3.errors import ConfigError, TrainingError
from dalle3.train.loop import LoopConfig
from dalle3.train.optim import OptimConfig
from dalle3.train.run import RunFolder, read_position
from tests.train.conftest import TASKS, dalle_task, fit
from tests.train.processes import TIMINGS

OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=2, lr_schedule="cosine", ema_decay=0.9)


def loop(**changes):
    given = {"steps": 6, "batch_size": 2, "ga_steps": 2, "log_every_n_steps": 1, "sample_every_n_steps": 0, **changes}
    return LoopConfig(**given)


def measured(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


def same_weights(one: Path, other: Path) -> bool:
    names = ["model.safetensors", "train/weights.safetensors"]
    return all(
        load_file(one / name).keys() == load_file(other / name).keys()
        and all(torch.equal(tensor, load_file(other / name)[key]) for key, tensor in load_file(one / name).items())
        for name in names
    )


@pytest.mark.parametrize("kind", TASKS)
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(kind, tmp_path):
    whole = fit(TASKS[kind](), tmp_path / "whole", loop=loop(save_every_n_steps=3), optim=OPTIM)
    first = tmp_path / "whole" / "step-00000003"
    os.rename(tmp_path / "whole" / "step-00000006", tmp_path / "kept")
    resumed = fit(TASKS[kind](), tmp_path / "whole", resume="auto", loop=loop(save_every_n_steps=3), optim=OPTIM)
    assert first.is_dir()
    assert same_weights(tmp_path / "kept", resumed.checkpoint)
    assert whole.finished
    assert resumed.finished
    assert [row["step"] for row in measured(tmp_path / "whole")] == [1, 2, 3, 4, 5, 6]


def test_a_resumed_run_measures_what_the_uninterrupted_one_did(tmp_path):
    fit(dalle_task(), tmp_path / "whole", loop=loop(), optim=OPTIM)
    fit(dalle_task(), tmp_path / "cut", loop=loop(save_every_n_steps=2), optim=OPTIM)
    for name in ("step-00000004", "step-00000006"):
        os.rename(tmp_path / "cut" / name, tmp_path / name)
    fit(dalle_task(), tmp_path / "cut", resume="auto", loop=loop(), optim=OPTIM)
    assert measured(tmp_path / "whole") == measured(tmp_path / "cut")


def test_the_loss_falls(tmp_path):
    optim = OptimConfig(learning_rate=1e-2)
    fit(dalle_task(), tmp_path, loop=loop(steps=30, batch_size=8, ga_steps=1), optim=optim)
    losses = [row["loss"] for row in measured(tmp_path)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_accumulated_steps_equal_one_large_batch(tmp_path):
    optim = OptimConfig(learning_rate=1e-2, optimizer="SGD", clip_grad_norm=0)
    kind = TASKS["autoencoder"]  # its loss draws nothing, so that only the accumulation differs
    fit(kind(), tmp_path / "one", loop=loop(batch_size=4, ga_steps=1), optim=optim)
    fit(kind(), tmp_path / "two", loop=loop(batch_size=2, ga_steps=2), optim=optim)
    one, two = (load_file(tmp_path / name / "step-00000006" / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-5, atol=1e-6)


def test_a_checkpoint_holds_all_that_drawing_needs(tmp_path):
    checkpoint = fit(dalle_task(), tmp_path, loop=loop(steps=1), optim=OPTIM).checkpoint
    found = read_folder(checkpoint)
    assert (found.kind, found.codec.kind, found.tokenizer["kind"]) == ("dalle", "discrete_vae", "huggingface")
    assert found.training["step"] == 1


def test_broken_samples_are_counted_and_named(tmp_path, capfd):
    checkpoint = fit(dalle_task(), tmp_path, loop=loop(steps=5), optim=OPTIM).checkpoint  # 20 samples: one epoch
    assert read_position(checkpoint).skipped == 1
    assert "skipped square 2: broken" in capfd.readouterr().err


def test_sample_pictures_are_kept(tmp_path):
    fit(dalle_task(), tmp_path, loop=loop(steps=2, sample_every_n_steps=1), optim=OPTIM)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "step-00000001.png",
        "step-00000002.png",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint(number, tmp_path):
    task = dalle_task()
    objective = task.objective.forward
    calls = []

    def interrupted(**inputs):
        calls.append(1)
        if len(calls) == 4:  # after a pass that counts operations: in the second step of two passes
            os.kill(os.getpid(), number)
        return objective(**inputs)

    task.objective.forward = interrupted
    outcome = fit(task, tmp_path, loop=loop(), optim=OPTIM)
    assert (outcome.step, outcome.finished) == (2, False)
    assert outcome.checkpoint.is_dir()


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(tmp_path):
    task = TASKS["vae"]()
    saved = fit(task, tmp_path, loop=loop(steps=2), optim=OPTIM).checkpoint
    with torch.no_grad():
        task.model.codebook.weight.fill_(float("nan"))
    run, steps = tmp_path / "again", loop(steps=2)
    with pytest.raises(TrainingError, match=r"step 1: the loss is nan .* there is no checkpoint yet"):
        fit(task, run, loop=steps, optim=OPTIM)
    assert saved.is_dir()
    assert RunFolder(run).checkpoints() == []


@pytest.mark.parametrize("name", ["steps", "batch_size", "keep_n_checkpoints"])
def test_numbers_that_leave_nothing_to_do_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} is 0; it must be at least 1"):
        LoopConfig(**{name: 0})


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    fit(TASKS["vae"](), tmp_path, loop=loop(save_every_n_steps=1, keep_n_checkpoints=2), optim=OPTIM)
    assert [path.name for path in RunFolder(tmp_path).checkpoints()] == ["step-00000005", "step-00000006"]


def test_a_folder_with_a_run_is_not_begun_anew(tmp_path):
    fit(TASKS["vae"](), tmp_path, loop=loop(steps=1), optim=OPTIM)
    with pytest.raises(TrainingError, match="holds a run; pass --resume auto"):
        fit(TASKS["vae"](), tmp_path, loop=loop(steps=1), optim=OPTIM)


def test_a_run_is_not_continued_with_another_seed(tmp_path):
    fit(TASKS["vae"](), tmp_path, loop=loop(steps=1), optim=OPTIM)
    with pytest.raises(ConfigError, match="begun with seed 0, now 1"):
        fit(TASKS["vae"](), tmp_path, resume="auto", loop=loop(seed=1), optim=OPTIM)


def test_what_a_killed_save_left_is_removed(tmp_path):
    (tmp_path / "step-00000009.partial").mkdir(parents=True)
    fit(TASKS["vae"](), tmp_path, loop=loop(steps=1), optim=OPTIM)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000001"]
