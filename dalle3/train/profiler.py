"""`--flops_profiler`: where the operations of a model are, instead of training it."""

from __future__ import annotations

import itertools

import torch

from dalle3.data.loader import Stream, batches
from dalle3.runtime import generator
from dalle3.train.loop import LoopConfig
from dalle3.train.optim import OptimConfig, make_optimizer
from dalle3.train.parallel import Parallel
from dalle3.train.task import Task
from dalle3.train.throughput import count, count_by_part
from dalle3.train.zero import PROFILED_STEP, DeepSpeed

DEEPEST = 6


def profile(task: Task, stream: Stream, loop: LoopConfig, optim: OptimConfig, *, parallel: Parallel) -> int:
    """Prints the operations of each part of a model, under DeepSpeed its own profile of a step, and returns 0."""
    if isinstance(parallel, DeepSpeed):
        _train_until_profiled(task, stream, loop, optim, parallel=parallel)
    elif parallel.rank == 0:
        print(operations_by_part(task, stream, seed=loop.seed))
    parallel.finish()
    return 0


def operations_by_part(task: Task, stream: Stream, *, seed: int) -> str:
    """A line for each part of a model: floating-point operations of a sample's forward pass, then of both passes."""
    parts = count_by_part(task, stream, seed=seed)
    lines = [f"{number:>20,}  {part}" for part, number in parts.items() if number and part.count(".") <= DEEPEST]
    total = count(task, stream, seed=seed, step=0)
    return "\n".join(["operations of a sample, forward", *lines, f"{total:>20,}  forward and backward"])


def _train_until_profiled(
    task: Task, stream: Stream, loop: LoopConfig, optim: OptimConfig, *, parallel: Parallel
) -> None:
    """Trains until DeepSpeed has printed its profile, and keeps nothing."""
    parallel.wrap(task.objective, make_optimizer(task.objective, optim))
    data = batches(stream, loop.batch_size, rank=parallel.rank, world=parallel.world)
    for number, batch in enumerate(itertools.islice(data, (PROFILED_STEP + 1) * loop.ga_steps)):
        with torch.no_grad():
            inputs = task.prepare(batch, step=0, rng=generator(loop.seed, "profile", number))
        loss, _ = parallel.forward(inputs)
        parallel.backward(loss / loop.ga_steps)
        parallel.step(learning_rate=optim.learning_rate, clip=optim.clip_grad_norm)
