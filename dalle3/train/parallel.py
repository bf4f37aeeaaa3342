"""Where a step runs: one device, or one of several processes. The loop knows only the five verbs.

wrap, backward, step, save, load: once for one device, once for DDP (DeepSpeed is to follow).
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dalle3.train.task import Metrics

OPTIMIZER = "optimizer.pt"


class Parallel(Protocol):
    """What the loop asks of the machines."""

    device: torch.device
    rank: int
    world: int

    def wrap(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Takes charge of the objective and of what changes its weights."""
        ...

    def forward(self, inputs: dict[str, Any]) -> tuple[Tensor, Metrics]:
        """The objective's loss and metrics."""
        ...

    def accumulating(self) -> AbstractContextManager[Any]:
        """A block whose gradients are only added up, not yet exchanged."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`."""
        ...

    def step(self, *, learning_rate: float, clip: float) -> float:
        """Changes the weights and forgets the gradients; the gradient's norm before clipping.

        Where the norm is not finite nothing is changed.
        """
        ...

    def mean(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics averaged over all processes."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process, so that all stop after the same step."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the optimizer's state; the first process calls it."""
        ...

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote."""
        ...

    def barrier(self) -> None:
        """Waits for all processes."""
        ...


class SingleDevice:
    """One process on one device.

    Args:
        dtype: below float32, the format of matrix products in the forward pass (autocast); weights stay float32.
    """

    rank, world = 0, 1

    def __init__(self, device: torch.device, *, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = device, dtype
        self.objective: nn.Module
        self.optimizer: torch.optim.Optimizer

    def wrap(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Takes charge of the objective and of what changes its weights."""
        self.objective, self.optimizer = objective, optimizer
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]

    def forward(self, inputs: dict[str, Any]) -> tuple[Tensor, Metrics]:
        """The objective's loss and metrics."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.objective(**inputs)

    def accumulating(self) -> AbstractContextManager[Any]:
        """A block of no consequence: there is nobody to exchange gradients with."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`."""
        loss.backward()

    def step(self, *, learning_rate: float, clip: float) -> float:
        """Changes the weights and forgets the gradients; the gradient's norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.trained, clip or float("inf"))
        if torch.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def mean(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics as they are."""
        return metrics

    def any(self, flag: bool) -> bool:
        """The flag as it is."""
        return flag

    def save(self, folder: Path) -> None:
        """Writes the optimizer's state."""
        torch.save(self.optimizer.state_dict(), folder / OPTIMIZER)

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote."""
        self.optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location=self.device, weights_only=True))

    def barrier(self) -> None:
        """Does not wait: there is nobody to wait for."""


class DataParallel(SingleDevice):
    """One of several processes that each hold the whole model (torchrun sets up their meeting)."""

    def __init__(self, device: torch.device, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(device, dtype=dtype)
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def wrap(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Takes charge of the objective and of what changes its weights."""
        super().wrap(objective, optimizer)
        self.objective = nn.parallel.DistributedDataParallel(objective)

    def accumulating(self) -> AbstractContextManager[Any]:
        """A block whose gradients are only added up, not yet exchanged."""
        assert isinstance(self.objective, nn.parallel.DistributedDataParallel)
        return self.objective.no_sync()

    def mean(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics averaged over all processes."""
        values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(values)
        return dict(zip(metrics, (values / self.world).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process, so that all stop after the same step."""
        flags = torch.tensor(int(flag), device=self.device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return bool(flags)

    def barrier(self) -> None:
        """Waits for all processes."""
        torch.distributed.barrier()
