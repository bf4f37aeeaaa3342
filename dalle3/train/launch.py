"""How a run is spread over processes: what the flags and the launcher say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dalle3.config import option
from dalle3.errors import ConfigError
from dalle3.runtime import DTYPES, launched, pick_device, warn_of_slow
from dalle3.train.loop import LoopConfig
from dalle3.train.optim import OptimConfig
from dalle3.train.parallel import DataParallel, Parallel, SingleDevice
from dalle3.train.zero import PROFILER, DeepSpeed, ZeroConfig


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """What runs under `torchrun` or `deepspeed` do together. Without a launcher a run is one process."""

    deepspeed: bool = option(False, help="train under DeepSpeed; without it several processes are DDP")
    deepspeed_config: Path | None = option(None, help="JSON of DeepSpeed's settings, which go before the flags")
    zero_stage: int = option(0, help="what DeepSpeed divides: 1 optimizer state, 2 gradients too, 3 weights too")
    offload: bool = option(False, help="under DeepSpeed: the optimizer's state stays in the CPU's memory")
    local_rank: int = option(-1, help="given by the `deepspeed` launcher; the environment says the same")

    def __post_init__(self) -> None:
        """Raises ConfigError for flags of DeepSpeed without it."""
        if self.zero_stage not in (0, 1, 2, 3):
            raise ConfigError(f"zero_stage is {self.zero_stage}; it may be 0, 1, 2, 3")
        if not self.deepspeed and (self.deepspeed_config or self.zero_stage or self.offload):
            raise ConfigError("--deepspeed_config, --zero_stage and --offload are for DeepSpeed; add --deepspeed")

    @property
    def zero(self) -> ZeroConfig:
        """What DeepSpeed is asked for."""
        return ZeroConfig(stage=self.zero_stage, offload=self.offload, file=self.deepspeed_config)


def local_device(name: str) -> torch.device:
    """The device of the flag; of several processes on one machine each has its own GPU."""
    device = pick_device(name)
    return torch.device("cuda", launched()[1]) if device.type == "cuda" and launched()[0] > 1 else device


def meet(config: LaunchConfig, loop: LoopConfig, optim: OptimConfig, *, device: torch.device) -> Parallel:
    """This process's place among those that were launched together.

    Raises:
        DependencyError: DeepSpeed is asked for and not installed.
        ConfigError: as `ZeroConfig.settings`; or DeepSpeed cannot do what the loop is asked for.
    """
    dtype = DTYPES[loop.dtype]
    if launched()[1] == 0:
        warn_of_slow(loop.dtype, device)
    if config.deepspeed:
        settings = config.zero.settings(
            batch_size=loop.batch_size, ga_steps=loop.ga_steps, clip=optim.clip_grad_norm, dtype=dtype
        )
        _check(settings, loop, optim)
        if loop.flops_profiler:
            settings["flops_profiler"] = PROFILER
        return DeepSpeed(device, settings)
    return DataParallel(device, dtype=dtype) if launched()[0] > 1 else SingleDevice(device, dtype=dtype)


def _check(settings: dict[str, Any], loop: LoopConfig, optim: OptimConfig) -> None:
    stage = settings["zero_optimization"].get("stage", 0)
    if loop.dtype == "float16":
        raise ConfigError("dtype is float16, whose loss scale DeepSpeed does not save; take bfloat16")
    if optim.optimizer == "Muon" and stage:
        raise ConfigError(
            f"optimizer is Muon, which needs whole matrices, and ZeRO stage {stage} cuts them; take AdamW"
        )
    if loop.compile and stage == 3:
        raise ConfigError("a compiled model needs its weights, which ZeRO stage 3 divides; leave out --compile")
