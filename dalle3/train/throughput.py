"""How fast a run goes, and which part of its devices' power that is."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from dalle3.data.loader import Stream, collate
from dalle3.runtime import generator
from dalle3.train.run import Position
from dalle3.train.seeds import seeded
from dalle3.train.task import Task

# floating-point operations a second of dense matrix products in bfloat16 and float16, from NVIDIA's data sheets
DATA_SHEETS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
SECONDS_OF_MEASURING = 0.1
SAMPLES = 2  # counted together, as a normalisation may need more than one value


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a sample asks of a device, and what the device can do.

    Attributes:
        tokens: of one sample, read or predicted; 0 where the task has none.
        operations: floating-point operations of a forward and a backward pass over one sample.
        peak: operations a second of all devices together.
    """

    tokens: int
    operations: int
    peak: float


class Clock:
    """How fast a run goes, since it was last asked."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.time, self.consumed, self.step = time.perf_counter(), None, 0

    def read(self, position: Position, steps: int) -> dict[str, float]:
        """Samples and tokens a second, the part of the devices' peak, and the minutes left of `steps`.

        Nothing the first time: a run's beginning is slower than the rest.
        """
        now = time.perf_counter()
        before, self.consumed = self.consumed, position.consumed
        elapsed, self.time = now - self.time, now
        done, self.step = position.step - self.step, position.step
        if before is None or done <= 0 or elapsed <= 0:
            return {}
        rate = (position.consumed - before) / elapsed
        tokens = {"tokens_per_second": rate * self.work.tokens} if self.work.tokens else {}
        return {
            "samples_per_second": rate,
            **tokens,
            "model_flops_utilisation": rate * self.work.operations / self.work.peak,
            "minutes_left": (steps - position.step) * elapsed / done / 60,
        }


def count(task: Task, stream: Stream, *, seed: int, step: int) -> int:
    """Floating-point operations of a forward and a backward pass over one sample: the mean of the first `SAMPLES`.

    An addition and a multiplication are two; only matrix products, convolutions and attention are counted. Frozen
    helpers outside the objective are left out, dropout and checkpointing play no part, and no gradient stays behind.
    """
    objective, inputs = task.objective.eval(), _inputs(task, stream, seed=seed, step=step)
    with seeded(seed, "count", device=next(objective.parameters()).device), _counter() as counter:
        loss, _ = objective(**inputs)
        loss.backward()
    objective.zero_grad(set_to_none=True)
    return counter.get_total_flops() // SAMPLES


def count_by_part(task: Task, stream: Stream, *, seed: int) -> dict[str, int]:
    """The operations of a forward pass over one sample, as `count` counts them, in each module by name."""
    objective, inputs = task.objective.eval(), _inputs(task, stream, seed=seed, step=0)
    with seeded(seed, "count", device=next(objective.parameters()).device), _counter() as counter:
        objective(**inputs)
    parts = counter.get_flop_counts()
    del parts["Global"]  # the same as the objective's
    order = sorted(parts, key=lambda name: [part.zfill(4) for part in name.split(".")])  # layer 10 behind layer 9
    return {name: sum(parts[name].values()) // SAMPLES for name in order}


def _inputs(task: Task, stream: Stream, *, seed: int, step: int) -> dict[str, Any]:
    batch = collate([stream[position] for position in range(SAMPLES)])
    with torch.no_grad():
        return task.prepare(batch, step=step, rng=generator(seed, "count"))


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=_UNKNOWN)


def peak(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Operations a second that `device` can do in matrix products of `dtype`, and how that is known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = next((listed for model, listed in DATA_SHEETS.items() if re.search(rf"\b{model}\b", name)), None)
    if known is not None and dtype != torch.float32:
        return known, f"the data sheet of {name}"
    return _measured_peak(device, dtype), "measured"


@lru_cache
def _measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best of matrix products one after another."""
    side = 384 if device.type == "cpu" else 8192  # within a time slice of a busy CPU; a GPU full
    matrix = torch.full((side, side), 0.01, device=device, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + SECONDS_OF_MEASURING
    while time.perf_counter() < end or best == float("inf"):
        before = time.perf_counter()
        _ = matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - before)
    return 2 * side**3 / best


def _attention(query, key, value, *_, **__) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient, query, key, value, *_, **__) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _product_added(total, left, right, *_, **__) -> int:
    return 2 * left[0] * left[1] * right[1]


_UNKNOWN = {  # to torch's counter: attention on CPUs, products added in place
    torch.ops.aten.addmm_: _product_added,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
