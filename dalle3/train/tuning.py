"""Training some of a model: parts that are frozen, and adapters beside a model that is frozen whole."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn

from dalle3.checkpoint import Checkpoint, fingerprint
from dalle3.config import option
from dalle3.errors import ConfigError
from dalle3.models.dalle_lora import DalleLoraConfig
from dalle3.nn.names import matching


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Which model to begin with, and what of it trains."""

    init_from: Path | None = option(
        None, help="begin with the weights of this model: a dalle3 folder, or a file of docs/FORMATS.md"
    )
    freeze: tuple[str, ...] = option(
        (), help="parts that stay as they are: names, parts of names or patterns, like text_emb,transformer.layers.0"
    )
    train: tuple[str, ...] = option((), help="the only parts that train, named likewise; less those of --freeze")

    def choose(self, model: nn.Module) -> None:
        """Freezes the parameters of `model` that are not to train.

        Raises:
            ConfigError: a name is of no part, or nothing is left to train.
        """
        if not (self.freeze or self.train):
            return
        names = dict(model.named_parameters())
        frozen = _named(names, self.freeze, "freeze")
        trained = (_named(names, self.train, "train") if self.train else set(names)) - frozen
        if not any(names[name].requires_grad for name in trained):
            raise ConfigError(f"--freeze {','.join(self.freeze)} leaves nothing to train; freeze less")
        for name in names.keys() - trained:
            names[name].requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters beside a DALLE that stays as it is (LoRA, arXiv:2106.09685)."""

    lora_rank: int = option(0, help="train adapters of this rank beside the DALLE of --init_from; 0: the DALLE itself")
    lora_alpha: float | None = option(None, help="an adapter counts alpha / rank times (default: as --lora_rank)")
    lora_dropout: float = option(0.0, help="dropout on the adapters' inputs")
    lora_targets: tuple[str, ...] = option(
        ("to_qkv", "to_out", "up_gate", "down"), help="linear layers with an adapter, named as for --freeze"
    )
    lora_merge: bool = option(False, help="at the end, also write the DALLE with its adapters added, as OUT/merged")

    def __post_init__(self) -> None:
        """Raises ConfigError for flags of adapters where there are none."""
        if self.lora_rank < 0:
            raise ConfigError(f"lora_rank is {self.lora_rank}; it must be at least 0")
        if not self.lora_rank and any(getattr(self, field.name) != field.default for field in fields(self)):
            raise ConfigError("--lora_alpha, --lora_dropout, --lora_targets and --lora_merge need a --lora_rank")

    def beside(self, base: Checkpoint, path: Path) -> DalleLoraConfig:
        """The adapter of the DALLE `base` at `path`."""
        return DalleLoraConfig(
            rank=self.lora_rank,
            alpha=float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha,
            dropout=self.lora_dropout,
            targets=self.lora_targets,
            base_path=str(path.resolve()),
            base_sha256=fingerprint(base.state),
            base=base.config,
        )


def _named(names: dict[str, nn.Parameter], patterns: tuple[str, ...], flag: str) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        if not (some := matching(names, pattern)):
            parts = sorted({name.partition(".")[0] for name in names})
            raise ConfigError(f"--{flag} has {pattern!r}, which no part is called; the model has {', '.join(parts)}")
        found.update(some)
    return found
