"""The optimizer, its learning rate over time, and the running average of the weights."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dalle3.config import option
from dalle3.errors import ConfigError
from dalle3.train.muon import MuonAndAdamW, hidden_matrices

FLAGS = {"params", "lr", "betas", "weight_decay"}  # arguments of optimizers that are not given by --optimizer_args


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How weights follow their gradients."""

    optimizer: str = option(
        "AdamW", help="an optimizer of torch.optim by its name; Muon takes hidden matrices and leaves the rest to AdamW"
    )
    optimizer_args: str = option("", help="more arguments of the optimizer, as in momentum=0.9,nesterov=True")
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


def make_optimizer(objective: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of the parameters that need a gradient.

    Raises:
        ConfigError: torch.optim has none of that name, or it does not take the arguments.
    """
    kinds = optimizers()
    if config.optimizer not in kinds:
        raise ConfigError(f"optimizer is {config.optimizer!r}; of torch.optim it may be {', '.join(kinds)}")
    kind = kinds[config.optimizer]
    taken = set(inspect.signature(kind).parameters) - FLAGS
    extra = _arguments(config.optimizer_args, taken, config.optimizer)
    try:
        if config.optimizer == "Muon":
            return _muon(objective, config, extra)
        return kind(_groups(objective.parameters(), config), **_given(kind, config), **extra)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optimizer {config.optimizer}: {error}") from None


def optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """What torch.optim has for these models, by name."""
    found = {
        name: kind
        for name, kind in sorted(vars(torch.optim).items())
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)
    }
    for name in ("Optimizer", "LBFGS", "SparseAdam"):  # the last two need another loop, and sparse gradients
        del found[name]
    return found


def _given(kind: type[torch.optim.Optimizer], config: OptimConfig) -> dict[str, Any]:
    """What the flags say, as far as the optimizer takes it."""
    taken = inspect.signature(kind).parameters
    wanted: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas}
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        wanted["fused"] = True
    return {name: value for name, value in wanted.items() if name in taken}


def _groups(parameters: Iterable[nn.Parameter], config: OptimConfig) -> list[dict[str, Any]]:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _arguments(text: str, taken: set[str], optimizer: str) -> dict[str, Any]:
    """The value of each argument in "momentum=0.9,nesterov=True"."""
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in taken:
            raise ConfigError(
                f"optimizer_args has {part!r}; {optimizer} takes {', '.join(sorted(taken))}, as NAME=VALUE"
            )
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _muon(objective: nn.Module, config: OptimConfig, extra: dict[str, Any]) -> torch.optim.Optimizer:
    matrices = hidden_matrices(objective)
    if not matrices:
        raise ConfigError("optimizer is Muon, which is for matrices of linear layers; this model has none, take AdamW")
    chosen = {id(matrix) for matrix in matrices}
    others = _groups((p for p in objective.parameters() if id(p) not in chosen), config)
    return MuonAndAdamW(
        torch.optim.Muon(
            matrices,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            **{"adjust_lr_fn": "match_rms_adamw", **extra},
        ),
        torch.optim.AdamW(others, **_given(torch.optim.AdamW, config)) if others else None,
    )


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
