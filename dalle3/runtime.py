"""The machine: devices, number formats, environment variables and random numbers."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from dalle3.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is the first CUDA device, else the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name} cannot be used here ({reason}); try --device cpu") from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format called `name`.

    Raises:
        ConfigError: unknown, or float16 on a CPU, whose half-precision kernels are slow and overflow.
    """
    if name not in DTYPES:
        raise ConfigError(f"--dtype {name} is unknown; it may be {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise ConfigError("--dtype float16 needs a GPU; on a CPU use bfloat16 or float32")
    return DTYPES[name]


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


def home() -> Path:
    """Where models made or fetched on this machine live: `$DALLE3_HOME`, else `~/.cache/dalle3`."""
    return Path(os.environ.get("DALLE3_HOME") or Path.home() / ".cache" / "dalle3")


def native_allowed() -> bool:
    """Whether decoding may compile and use its C code; `DALLE3_NATIVE=0` says no."""
    return os.environ.get("DALLE3_NATIVE", "1") != "0"


def openai_clip_cache() -> Path:
    """Where OpenAI's `clip` package keeps the archives it downloaded."""
    return Path.home() / ".cache" / "clip"


def dalle_pytorch_cache() -> Path:
    """Where dalle-pytorch keeps the image tokenizers it downloaded."""
    return Path.home() / ".cache" / "dalle"
