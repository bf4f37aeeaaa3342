"""The machine: devices, number formats, environment variables and random numbers."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from pathlib import Path

import torch
import torch.profiler

from dalle3.errors import ConfigError
from dalle3.log import warn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TRIED_SIZE = 256  # of the matrices that a number format is tried on
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h: bytes from which freed memory is given back


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is the first CUDA device, else the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # the meta device has no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used here ({reason}); try --device cpu") from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format called `name`; says so where it is slow on `device`.

    Raises:
        ConfigError: unknown, or float16 on a CPU, whose half-precision kernels are slow and overflow.
    """
    if name not in DTYPES:
        raise ConfigError(f"--dtype {name} is unknown; it may be {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise ConfigError("--dtype float16 needs a GPU; on a CPU use bfloat16 or float32")
    warn_of_slow(name, device)
    return DTYPES[name]


def warn_of_slow(name: str, device: torch.device) -> None:
    """Says so where the number format called `name` is slower than float32 on `device`."""
    if name == "bfloat16" and not fast_bfloat16(device):
        warn(f"--dtype bfloat16 takes {time_of_bfloat16():.2g} times as long as float32 on this CPU; float32 is better")


def fast_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 faster than float32, as GPUs do and CPUs with instructions for it."""
    return device.type != "cpu" or time_of_bfloat16() < 1


@cache
def time_of_bfloat16() -> float:
    """The time of a matrix product in bfloat16 on this CPU over that in float32; tried, in 0.2 s at most.

    A quarter where there are instructions for it, 70 to 90 on a CPU of no more than AVX2 (PyTorch 2.13).
    """
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        factor = torch.ones(TRIED_SIZE, TRIED_SIZE, dtype=dtype)
        tries = []
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(factor, factor)
            tries.append(time.perf_counter() - start)
        times[dtype] = min(tries)
    return times[torch.bfloat16] / times[torch.float32]


def generator(seed: int, *purpose: int | str) -> torch.Generator:
    """The CPU generator of one purpose, such as `generator(seed, "image", 3)`.

    It is a function of its arguments alone, so no random state is ever stored, and nothing
    drawn for one purpose depends on how much was drawn for another.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def launched() -> tuple[int, int]:
    """How many processes torchrun or deepspeed started together, and which of this machine's is this one."""
    return int(os.environ.get("WORLD_SIZE") or 1), int(os.environ.get("LOCAL_RANK") or 0)


def place_among_processes() -> tuple[int, int]:
    """This process's number among those that torchrun started together on all machines, and how many they are."""
    return int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)


def stand_alone() -> bool:
    """Whether no launcher started this process; if so, notes it where DeepSpeed looks, in the environment."""
    alone = "RANK" not in os.environ
    if alone:
        os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    return alone


def home() -> Path:
    """Where models made or fetched on this machine live: `$DALLE3_HOME`, else `~/.cache/dalle3`."""
    return Path(os.environ.get("DALLE3_HOME") or Path.home() / ".cache" / "dalle3")


def native_allowed() -> bool:
    """Whether C may be compiled and used; `DALLE3_NATIVE=0` says no."""
    return os.environ.get("DALLE3_NATIVE", "1") != "0"


def openai_clip_cache() -> Path:
    """Where OpenAI's `clip` package keeps the archives it downloaded."""
    return Path.home() / ".cache" / "clip"


def dalle_pytorch_cache() -> Path:
    """Where dalle-pytorch keeps the image tokenizers it downloaded."""
    return Path.home() / ".cache" / "dalle"


def keep_freed_memory() -> None:
    """Lets this process reuse the memory of tensors it is done with, where the C library is GNU's.

    It would give large pieces back to the system, which clears every page of them anew for the next step: a tenth of a
    training step on a CPU. The process stays as large as it was at its fullest.
    """
    if sys.platform.startswith("linux") and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for setting in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            library.mallopt(setting, 2**31 - 1)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that `run` holds at its fullest, beyond those there were before: measured, by running it.

    On a CPU the allocations are traced, so neither what the process freed before nor mapped files blur the figure.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the tracer would announce itself on standard error
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    assert trace.profiler is not None
    assert trace.profiler.kineto_results is not None
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    sizes = (event.nbytes() for event in events)  # type: ignore[attr-defined]
    return max(accumulate(sizes, initial=0))
