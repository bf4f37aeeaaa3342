"""The optimizer, its learning rate over time, and the running average of the weights."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dalle3.config import option
from dalle3.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How weights follow their gradients."""

    optimizer: str = option("AdamW", help="an optimizer of torch.optim by its name")
    learning_rate: float = option(3e-4, help="highest learning rate")
    weight_decay: float = option(0.0, help="decay of matrices; biases, norms and scales are left alone")
    betas: tuple[float, ...] = option((0.9, 0.99), help="decay rates of the averages of optimizers that keep two")
    warmup_steps: int = option(0, help="steps over which the learning rate rises from 0")
    lr_schedule: Literal["constant", "cosine", "plateau"] = option(
        "constant", help="what the learning rate does after warm-up; plateau: halves when epochs stop getting better"
    )
    final_lr_ratio: float = option(0.0, help="learning rate at the end of the cosine, in parts of the highest")
    clip_grad_norm: float = option(0.5, help="largest norm of the gradient; 0 leaves it alone")
    ema_decay: float = option(
        0.0, help="decay of the running average of the weights, which is then what is used; 0: none"
    )

    def __post_init__(self) -> None:
        """Raises ConfigError for values outside their range."""
        for name in ("learning_rate", "weight_decay", "warmup_steps", "final_lr_ratio", "clip_grad_norm"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay is {self.ema_decay}; it must be at least 0 and below 1")


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of the parameters that need a gradient.

    Raises:
        ConfigError: torch.optim has none of that name, or it takes matrices only.
    """
    kind = getattr(torch.optim, config.optimizer, None)
    if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)):
        raise ConfigError(
            f"torch.optim has no optimizer {config.optimizer!r}; AdamW, Adafactor and SGD are some it has"
        )
    if config.optimizer in ("Muon", "LBFGS", "SparseAdam"):
        raise ConfigError(f"{config.optimizer} cannot train every weight of these models; take AdamW")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    taken = inspect.signature(kind).parameters
    wanted: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "fused": True}
    if config.optimizer not in ("Adam", "AdamW"):
        del wanted["fused"]
    return kind([group for group in groups if group["params"]], **{k: v for k, v in wanted.items() if k in taken})


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The learning rate of step `step` of `steps`, counted from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_schedule != "cosine":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return config.learning_rate * (config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine)


@dataclass
class Plateau:
    """How far the loss of whole epochs has come: DALLE-pytorch's --lr_decay, halving after ten epochs without gain.

    As torch's ReduceLROnPlateau with factor 0.5, patience 10, cooldown 10 and a relative threshold of 1e-4.
    """

    total: float = 0.0
    count: int = 0
    best: float | None = None
    bad_epochs: int = 0
    cooldown: int = 0
    factor: float = 1.0

    def add(self, loss: float) -> None:
        """Notes the loss of a step."""
        self.total, self.count = self.total + loss, self.count + 1

    def end_epoch(self, loss: float) -> None:
        """Judges an epoch by its mean loss."""
        self.total, self.count = 0.0, 0
        better = self.best is None or loss < self.best * (1 - 1e-4)
        self.best = loss if better else self.best
        self.bad_epochs = 0 if better or self.cooldown else self.bad_epochs + 1
        self.cooldown = max(0, self.cooldown - 1)
        if self.bad_epochs > 10:
            self.factor, self.bad_epochs, self.cooldown = self.factor / 2, 0, 10


class Average:
    """The exponential running average of a model's floating-point weights; the rest is copied.

    Early on, the decay is held to (1 + step) / (10 + step), so that the first random weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, weights: dict[str, Tensor], step: int) -> None:
        """Moves the average towards the weights after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                self.state[name].lerp_(tensor, 1 - decay)
            else:
                self.state[name].copy_(tensor)

    def load(self, state: dict[str, Tensor]) -> None:
        """Continues from a stored average."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])
