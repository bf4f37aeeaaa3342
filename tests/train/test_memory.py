"""What is recomputed or compiled trains the same model."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch

from dalle3.data.loader import collate
from dalle3.models.dalle import Dalle
from dalle3.runtime import generator, peak_bytes
from dalle3.train.memory import checkpoint_activations
from dalle3.train.optim import OptimConfig
from dalle3.train.task import Task
from dalle3.train.tasks.dalle import DalleTask
from tests.train.conftest import TASKS, dalle_task, fit, vae
from tests.train.test_loop import loop, measured
from tests.train.test_progress import squares

OPTIM = OptimConfig(learning_rate=1e-2)


@pytest.mark.parametrize("kind", TASKS)
def test_recomputed_activations_train_the_same_model_bit_for_bit(kind, tmp_path):
    fit(TASKS[kind](), tmp_path / "kept", loop=loop(steps=2), optim=OPTIM)
    fit(TASKS[kind](), tmp_path / "twice", loop=loop(steps=2, gradient_checkpointing=True), optim=OPTIM)
    assert measured(tmp_path / "twice") == measured(tmp_path / "kept")


def backward(task: Task) -> None:
    """A pass over eight samples."""
    batch = collate([squares()[position] for position in range(8)])
    with torch.no_grad():
        inputs = task.prepare(batch, step=5, rng=generator(0, "prepare"))
    task.objective(**inputs)[0].backward()


@pytest.mark.parametrize("kind", ["clip", "upsampler", "vqgan"])
def test_recomputing_takes_less_memory(kind):
    takes_less(TASKS[kind]())


def test_recomputing_takes_less_memory_of_a_deep_dalle():
    task = dalle_task()
    config = dataclasses.replace(task.dalle.config, depth=4, dim=32)
    takes_less(DalleTask(Dalle(config), vae(), task.tokenizer, task.config))


def takes_less(task: Task) -> None:
    backward(task)  # gradients are there from now on
    before = peak_bytes(partial(backward, task), torch.device("cpu"))
    checkpoint_activations(task.objective)
    assert peak_bytes(partial(backward, task), torch.device("cpu")) < before
