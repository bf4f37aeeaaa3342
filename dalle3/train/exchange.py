"""What the objectives of several processes tell each other. Alone, a process talks to itself.

Shapes: B rows of one process, R processes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def of_all(rows: Tensor) -> Tensor:
    """The rows (B, D) of all processes, (R B, D), in the order of processes.

    All processes compute the same loss of them, each with a gradient for its own rows alone. That gradient is
    multiplied by R, because DDP and DeepSpeed take the mean of the processes' gradients and not their sum.
    """
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world())]
    dist.all_gather(parts, rows.detach().contiguous())
    own = rows.view_as(rows)
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient * world())
    parts[dist.get_rank()] = own
    return torch.cat(parts)


def sum_of_all(numbers: Tensor) -> Tensor:
    """The sums over all processes of numbers of the same shape in each."""
    if world() > 1:
        dist.all_reduce(numbers := numbers.clone())
    return numbers


def from_first(tensor: Tensor) -> Tensor:
    """The tensor of the first process, of the same shape in each."""
    if world() > 1:
        dist.broadcast(tensor := tensor.contiguous(), src=0)
    return tensor
