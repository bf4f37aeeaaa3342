"""Run by torchrun in test_zero.py: every way DeepSpeed divides a run, one after another in the same processes.

Usage: zero_cases.py FOLDER STEPS CASE...: trains each case in FOLDER/CASE to STEPS, from its latest checkpoint on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dalle3.data.loader import Stream
from dalle3.data.transforms import Crop, CropConfig
from dalle3.runtime import launched
from dalle3.train.launch import LaunchConfig, meet
from dalle3.train.loop import LoopConfig, train
from dalle3.train.optim import OptimConfig
from dalle3.train.parallel import Parallel
from dalle3.train.run import RunFolder
from dalle3.train.task import Task
from dalle3.train.tasks.clip import ClipTask
from dalle3.train.tasks.vqgan import VqganTask, VqganTaskConfig
from tests.train.conftest import TASKS, Squares, clip_task, kmeans_task
from tests.train.vqgans import vqgan_task

OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=2, clip_grad_norm=0.5)
GRADIENTS = OptimConfig(optimizer="SGD", learning_rate=1.0, clip_grad_norm=0)  # a step is minus the gradient
STAGES = {"ddp": {"deepspeed": False}, **{f"stage{stage}": {"zero_stage": stage} for stage in range(4)}}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"deepspeed": False},  # DDP, where there are several processes
    **{f"stage{stage}": {"zero_stage": stage} for stage in range(4)},
    "autocast": {"zero_stage": 2, "dtype": "bfloat16"},
    "offload": {"zero_stage": 2, "offload": True},
    "average": {"zero_stage": 3, "ema_decay": 0.9},
    "alone": {"zero_stage": 2},  # these continue what other processes began
    "alone0": {"zero_stage": 0, "task": "autoencoder"},
    "undivided": {"deepspeed": False},
    "grown": {"deepspeed": False, "task": "autoencoder"},
    "grown1": {"zero_stage": 1, "task": "autoencoder"},
    "native": {"deepspeed_config": Path("native.json")},
    "gradients": {"deepspeed": False, "task": "sized_clip", "optim": GRADIENTS},
    "kmeans": {"deepspeed": False, "task": "kmeans"},
    **{f"{task}-{stage}": {"task": task, **given} for task in (*TASKS, "redrawing") for stage, given in STAGES.items()},
}


def overgrown_clip() -> ClipTask:
    """A CLIP whose logit scale is above what is allowed."""
    task = clip_task()
    with torch.no_grad():
        task.model.logit_scale.fill_(6.0)
    return task


def redrawing_vqgan() -> VqganTask:
    """A VQGAN without an adversary."""
    return vqgan_task(VqganTaskConfig(disc_start=99))


def reviving_vqgan() -> VqganTask:
    """A VQGAN that moves what it does not use of its codebook after each pass."""
    return vqgan_task(VqganTaskConfig(disc_start=1, revive_every=1))


MADE: dict[str, Callable[[], Task]] = {
    **TASKS,
    "sized_clip": clip_task,
    "clip": overgrown_clip,
    "redrawing": redrawing_vqgan,
    "vqgan": reviving_vqgan,
    "kmeans": kmeans_task,
}


def loop_of(kind: str, dtype: str, steps: int, world: int) -> LoopConfig:
    """Four samples a pass, whatever the number of processes."""
    return LoopConfig(
        steps=steps,
        batch_size=4 // world,
        ga_steps=2,
        save_every_n_steps=2,
        log_every_n_steps=1,
        sample_every_n_steps=3 if kind in ("dalle", "clip") else 0,
        device="cpu",
        dtype=dtype,  # type: ignore[arg-type]
    )


def run(folder: Path, steps: int, case: str) -> Parallel:
    """Trains one case."""
    given = {"deepspeed": True, "dtype": "float32", "task": "dalle", "optim": OPTIM, "ema_decay": 0.0, **CASES[case]}
    kind = given.pop("task")
    loop = loop_of(kind, given.pop("dtype"), steps, launched()[0])
    optim = replace(given.pop("optim"), ema_decay=given.pop("ema_decay"))
    if "deepspeed_config" in given:
        given["deepspeed_config"] = folder / given["deepspeed_config"]
    parallel = meet(LaunchConfig(**given), loop, optim, device=torch.device("cpu"))
    task, place = MADE[kind](), RunFolder(folder / case)
    start = parallel.first(lambda: place.begin({"task": kind, "seed": loop.seed}, resume="auto"))
    stream = Stream(Squares(), Crop(8, CropConfig()), seed=loop.seed)
    train(task, stream, loop, optim, run=place, start=start, parallel=parallel)
    return parallel


if __name__ == "__main__":
    last = [run(Path(sys.argv[1]), int(sys.argv[2]), case) for case in sys.argv[3:]][-1]
    last.finish()
