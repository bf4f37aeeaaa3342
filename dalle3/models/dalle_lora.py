"""A LoRA adapter of a DALLE, kept apart from it: the adapter's weights, and which DALLE they belong to."""

from __future__ import annotations

from dataclasses import dataclass

from dalle3.config import option
from dalle3.errors import ConfigError
from dalle3.models.dalle import Dalle, DalleConfig
from dalle3.nn.lora import Adapters, add_lora


@dataclass(frozen=True, kw_only=True)
class DalleLoraConfig:
    """An adapter, and the DALLE it was trained beside."""

    rank: int = option(help="rows of the thin matrices")
    alpha: float = option(help="the adapter counts alpha / rank times")
    dropout: float = option(0.0, help="dropout on the adapters' inputs, while they train")
    targets: tuple[str, ...] = option(help="the linear layers that have an adapter")
    base_path: str = option(help="where the DALLE was")
    base_sha256: str = option(help="the fingerprint of its weights")
    base: DalleConfig = option(help="its configuration")

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be trained."""
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(
                f"lora_rank is {self.rank} and lora_alpha {self.alpha}; the first must be 1 or more, the second above 0"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora_dropout is {self.dropout}; it must be at least 0 and below 1")


class DalleLora(Adapters):
    """The weights of an adapter alone, under the names they have in the DALLE."""

    def __init__(self, config: DalleLoraConfig) -> None:
        super().__init__(adapted(Dalle(config.base), config))
        self.config = config


def adapted(dalle: Dalle, config: DalleLoraConfig) -> Dalle:
    """`dalle` with fresh adapters, which change nothing yet; only they train.

    Raises:
        ConfigError: a target names no linear layer.
    """
    add_lora(dalle, config.targets, rank=config.rank, scale=config.alpha / config.rank, dropout=config.dropout)
    return dalle
