"""Run by torchrun in test_zero.py: every way DeepSpeed divides a run, one after another in the same processes.

Usage: zero_cases.py FOLDER STEPS CASE...: trains each case in FOLDER/CASE to STEPS, from its latest checkpoint on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from dalle3.data.loader import Stream
from dalle3.data.transforms import Crop, CropConfig
from dalle3.runtime import launched
from dalle3.train.launch import LaunchConfig, meet
from dalle3.train.loop import LoopConfig, train
from dalle3.train.optim import OptimConfig
from dalle3.train.parallel import Parallel
from dalle3.train.run import RunFolder
from tests.train.conftest import Squares, dalle_task

OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=2, clip_grad_norm=0.5)
CASES = {
    "plain": {"deepspeed": False},  # DDP, where there are several processes
    **{f"stage{stage}": {"zero_stage": stage} for stage in range(4)},
    "autocast": {"zero_stage": 2, "dtype": "bfloat16"},
    "offload": {"zero_stage": 2, "offload": True},
    "average": {"zero_stage": 3, "ema_decay": 0.9},
    "alone": {"zero_stage": 2},
    "undivided": {"deepspeed": False},
    "native": {"deepspeed_config": Path("native.json")},
}


def run(folder: Path, steps: int, case: str) -> Parallel:
    """Trains one case."""
    given = {"deepspeed": True, **CASES[case]}
    dtype, decay = given.pop("dtype", "float32"), given.pop("ema_decay", 0.0)
    if "deepspeed_config" in given:
        given["deepspeed_config"] = folder / given["deepspeed_config"]
    world, _ = launched()
    loop = LoopConfig(
        steps=steps,
        batch_size=4 // world,
        ga_steps=2,
        save_every_n_steps=2,
        log_every_n_steps=1,
        sample_every_n_steps=3,
        device="cpu",
        dtype=dtype,
    )
    optim = OptimConfig(**{**vars(OPTIM), "ema_decay": decay})
    parallel = meet(LaunchConfig(**given), loop, optim, device=torch.device("cpu"))
    task, place = dalle_task(), RunFolder(folder / case)
    start = parallel.first(lambda: place.begin({"task": "dalle", "seed": loop.seed}, resume="auto"))
    stream = Stream(Squares(), Crop(8, CropConfig()), seed=loop.seed)
    train(task, stream, loop, optim, run=place, start=start, parallel=parallel)
    return parallel


if __name__ == "__main__":
    last = [run(Path(sys.argv[1]), int(sys.argv[2]), case) for case in sys.argv[3:]][-1]
    last.finish()
