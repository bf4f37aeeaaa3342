"""TensorBoard and Weights & Biases are told what the run's own files hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dalle3.train.trackers import TrackerConfig, open_trackers
from tests.cli.test_train import VAE, pictures, train  # noqa: F401

FLAGS = {**VAE, "save_every_n_steps": 2}


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_holds_the_metrics_and_samples_of_a_continued_run_once(tmp_path, pictures):  # noqa: F811
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    given = {**FLAGS, "image_text_folder": pictures, "out": tmp_path / "run"}
    assert train("vae", "tensorboard", **given, steps=5) == 0  # the checkpoint of step 5 is lost, as by a kill
    (tmp_path / "run" / "step-00000005").rename(tmp_path / "lost")
    assert train("vae", "tensorboard", **given, steps=6, resume="auto") == 0
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(row["step"], pytest.approx(row["loss"])) for row in rows(tmp_path / "run") if "loss" in row]
    assert [event.step for event in events.Images("samples")] == [2, 4, 6]


@pytest.mark.parametrize("switch", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_one_line(switch, tmp_path, pictures, capfd, monkeypatch):  # noqa: F811
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard.writer", raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train("vae", switch, **FLAGS, image_text_folder=pictures, out=tmp_path / "run") == 2
    said = capfd.readouterr().err
    assert f"pip install 'dalle3[{switch}]'" in said
    assert said.count("\n") == 1


def test_wandb_offline_keeps_the_run_and_its_number(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    numbers = []
    for done in (0, 3, 0):
        (tracker,) = open_trackers(TrackerConfig(wandb=True), tmp_path, project="p", described={"seed": 0}, done=done)
        tracker.log({"step": done + 1, "loss": 1.0})
        tracker.close()
        numbers.append(json.loads((tmp_path / "wandb.json").read_text())["id"])
    assert numbers[0] == numbers[1] != numbers[2]
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))) == 3
    assert wandb.run is None
