"""Where a step runs: one device, or one of several processes. The loop knows only the five verbs.

wrap, backward, step, save, load: once for one device, once for DDP, once for DeepSpeed (`zero.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dalle3.errors import Dalle3Error, TrainingError
from dalle3.log import warn
from dalle3.train.task import Correction, Metrics

T = TypeVar("T")

Moments = list[tuple[nn.Parameter, dict[str, Tensor] | None]]

OPTIMIZER, SCALE = "optimizer.pt", "loss_scale.json"
SHAPED = ("exp_avg", "momentum_buffer")  # what optimizers remember in the shape of a weight
LOWEST_SCALE = 1.0  # gradients that float16 cannot hold at this scale either are no accident
NEW_MOMENTS = "the weights continue, the optimizer's averages start anew"


class Parallel(Protocol):
    """What the loop asks of the machines."""

    device: torch.device
    rank: int
    world: int
    splits_weights: bool  # whether a process holds only its share of them (ZeRO stage 3)

    def wrap(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Takes charge of the objective, whose weights are what they shall start from, and of what changes them."""
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

    def step(self, *, learning_rate: float, clip: float) -> float | None:
        """Changes the weights and forgets the gradients; the gradient's norm before clipping.

        Where the norm is not finite nothing is changed. None says that float16 could not hold the gradients, and that
        the next step's will be smaller by the scale of the loss.
        """
        ...

    def loss_scale(self) -> float | None:
        """What the loss is multiplied by before gradients are taken; None where it is left alone."""
        ...

    def mean(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics averaged over all processes."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process, so that all stop after the same step."""
        ...

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The numbers of parameters and buffers of the objective, put together; all processes call it."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the optimizer's state into a folder that all processes see; all call it."""
        ...

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote; says so where that cannot be used."""
        ...

    def adopt(self, moments: Moments) -> None:
        """Gives the optimizer what another program's remembered of each parameter; says so where it cannot."""
        ...

    def first(self, action: Callable[[], T]) -> T:
        """What `action` returns in the first process, which alone does it, or its error: in every process."""
        ...

    def barrier(self) -> None:
        """Waits for all processes."""
        ...

    def finish(self) -> None:
        """Takes leave of the other processes, after a run that ended well."""
        ...


class SingleDevice:
    """One process on one device.

    Args:
        dtype: below float32, the format of matrix products in the forward pass (autocast); weights stay float32.
    """

    rank, world = 0, 1
    splits_weights = False

    def __init__(self, device: torch.device, *, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = device, dtype
        self.objective: nn.Module
        self.optimizer: torch.optim.Optimizer
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def wrap(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Takes charge of the objective and of what changes its weights."""
        self.objective, self.optimizer = objective, optimizer
        self.corrections: Callable[[], list[Correction]] = getattr(objective, "corrections", list)
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
        self.scaler.scale(loss).backward()

    def step(self, *, learning_rate: float, clip: float) -> float | None:
        """Changes the weights and forgets the gradients; the gradient's norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained, clip or float("inf"))
        if torch.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            self._correct()
        self.optimizer.zero_grad(set_to_none=True)
        before = self.loss_scale()
        self.scaler.update()
        return None if before is not None and LOWEST_SCALE <= self.scaler.get_scale() < before else float(norm)

    def loss_scale(self) -> float | None:
        """What the loss is multiplied by before gradients are taken, for float16; else None."""
        return self.scaler.get_scale() if self.scaler.is_enabled() else None

    @torch.no_grad()
    def _correct(self) -> None:
        for parameter, change in self.corrections():
            parameter.copy_(change(parameter))

    def mean(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics as they are."""
        return metrics

    def any(self, flag: bool) -> bool:
        """The flag as it is."""
        return flag

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The numbers of parameters and buffers, which are not divided here."""
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def save(self, folder: Path) -> None:
        """Writes the optimizer's state."""
        if self.rank == 0:
            torch.save(self.optimizer.state_dict(), folder / OPTIMIZER)
            if self.scaler.is_enabled():
                (folder / SCALE).write_text(json.dumps(self.scaler.state_dict()) + "\n")

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote."""
        path = folder / OPTIMIZER
        if path.is_file():
            self.optimizer.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))
            _check_shapes(self.optimizer, path)
        elif self.rank == 0:
            warn(f"{folder} holds no optimizer state of one device, as under DeepSpeed: {NEW_MOMENTS}")
        if self.scaler.is_enabled() and (folder / SCALE).is_file():
            self.scaler.load_state_dict(json.loads((folder / SCALE).read_text()))

    def adopt(self, moments: Moments) -> None:
        """Gives the optimizer what another's Adam remembered of each parameter, where it is an Adam too."""
        if not isinstance(self.optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            warn(f"{type(self.optimizer).__name__} has no use for what Adam remembers: {NEW_MOMENTS}")
            return
        known = {id(parameter): remembered for parameter, remembered in moments}
        blank = self.optimizer.state_dict()
        state = {number: known.get(id(parameter)) for number, parameter in enumerate(self.trained)}
        given = {number: remembered for number, remembered in state.items() if remembered}
        self.optimizer.load_state_dict({**blank, "state": given})

    def first(self, action: Callable[[], T]) -> T:
        """What `action` returns."""
        return action()

    def barrier(self) -> None:
        """Does not wait: there is nobody to wait for."""

    def finish(self) -> None:
        """Has nobody to take leave of."""


class Processes(SingleDevice):
    """One of several processes that each have a device (torchrun or deepspeed sets up their meeting)."""

    def __init__(self, device: torch.device, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(device, dtype=dtype)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()

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

    def first(self, action: Callable[[], T]) -> T:
        """What `action` returns in the first process, which alone does it; its mistake is raised in every process."""
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[0] = action()
            except Dalle3Error as error:
                told[1] = error
        torch.distributed.broadcast_object_list(told, device=self.device)
        if told[1] is not None:
            raise told[1] if self.rank == 0 else TrainingError(f"process {self.rank}: the first process gave up")
        return told[0]

    def barrier(self) -> None:
        """Waits for all processes."""
        torch.distributed.barrier()

    def finish(self) -> None:
        """Takes leave of the other processes and ends this one.

        An ordinary end of the interpreter aborts now and then, of threads that gloo or DeepSpeed leave behind, and
        a run that ended well would count as failed.
        """
        torch.distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class DataParallel(Processes):
    """One of several processes that each hold the whole model: DDP."""

    def wrap(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Takes charge of the objective and of what changes its weights."""
        super().wrap(objective, optimizer)
        self.left_out: Callable[[], list[nn.Parameter]] = getattr(objective, "left_out", list)
        self.objective = nn.parallel.DistributedDataParallel(objective)

    def forward(self, inputs: dict[str, Any]) -> tuple[Tensor, Metrics]:
        """The objective's loss and metrics; in the loss, all weights have a part, as DDP waits for each one's gradient.

        The alternative is to let DDP search every pass for those that have none.
        """
        loss, metrics = super().forward(inputs)
        return loss + sum(weights.flatten()[:0].sum() for weights in self.left_out()), metrics

    def step(self, *, learning_rate: float, clip: float) -> float | None:
        """Changes the weights and forgets the gradients; the gradient's norm before clipping."""
        for weights in self.left_out():
            weights.grad = None  # by a gradient of 0 the optimizer would change them, and what it remembers
        return super().step(learning_rate=learning_rate, clip=clip)

    def accumulating(self) -> AbstractContextManager[Any]:
        """A block whose gradients are only added up, not yet exchanged."""
        assert isinstance(self.objective, nn.parallel.DistributedDataParallel)
        return self.objective.no_sync()


def _check_shapes(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Raises TrainingError where moments have another shape than their weights: Adam would read past their end."""
    for parameter, remembered in optimizer.state.items():
        for moment in (remembered[name] for name in SHAPED if remembered.get(name) is not None):
            if moment.shape != parameter.shape:
                found, expected = tuple(moment.shape), tuple(parameter.shape)
                raise TrainingError(
                    f"{path} remembers a weight of shape {found} where the model has {expected}; it is of another model"
                )
