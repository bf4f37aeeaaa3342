"""Low-rank adapters: linear layers that stay as they are, and beside each a product of two thin matrices that trains.

LoRA, arXiv:2106.09685.

Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle3.errors import ConfigError
from dalle3.nn.names import matching

Network = TypeVar("Network", bound=nn.Module)


class LoraLinear(nn.Module):
    """W x + b + scale * B A x (equation 3), where only A and B train; B starts as zero, so nothing changes at first.

    Whoever reads `weight` instead of calling the layer, as decoding does, sees the sum W + scale * B A.
    """

    def __init__(self, frozen: nn.Linear, rank: int, *, scale: float, dropout: float = 0.0) -> None:
        """Puts an adapter beside `frozen`, which no longer trains.

        Args:
            rank: R.
            scale: alpha / R in the paper.
            dropout: on the adapter's input, while training.
        """
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.scale, self.dropout = scale, dropout
        first = torch.empty(rank, frozen.in_features)
        nn.init.kaiming_uniform_(first, a=math.sqrt(5))
        device = frozen.weight.device
        self.lora_a = nn.Parameter(first.to(device))
        self.lora_b = nn.Parameter(torch.zeros(frozen.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """(..., O) of `x` (..., I)."""
        inside = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a)
        return self.frozen(x) + F.linear(inside, self.lora_b) * self.scale

    @property
    def weight(self) -> Tensor:
        """W + scale * B A, (O, I), in the format of W."""
        frozen = self.frozen.weight
        return (frozen.float() + self.scale * (self.lora_b.float() @ self.lora_a.float())).to(frozen.dtype)

    @property
    def bias(self) -> Tensor | None:
        """b, (O,)."""
        return self.frozen.bias

    @property
    def in_features(self) -> int:
        """I."""
        return self.frozen.in_features

    def merged(self) -> nn.Linear:
        """A linear layer that does what this one does; the frozen one, with other weights."""
        self.frozen.weight = nn.Parameter(self.weight.detach(), requires_grad=False)
        return self.frozen


class Adapters(nn.Module):
    """The adapters of a network as a module: the same parameters, under the names they have there."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, layer in lora_layers(network):
            holder: nn.Module = self
            for part in name.split("."):
                if part not in dict(holder.named_children()):
                    holder.add_module(part, nn.Module())
                holder = holder.get_submodule(part)
            holder.lora_a, holder.lora_b = layer.lora_a, layer.lora_b


def lora_layers(network: nn.Module) -> list[tuple[str, LoraLinear]]:
    """The layers of `network` that have an adapter, by name."""
    return [(name, layer) for name, layer in network.named_modules() if isinstance(layer, LoraLinear)]


def add_lora(network: nn.Module, targets: Sequence[str], *, rank: int, scale: float, dropout: float = 0.0) -> None:
    """Freezes `network` and gives those of its linear layers an adapter that `targets` name.

    Args:
        targets: names of layers, parts of names or patterns, as `names.matching`.
        rank: of each adapter.
        scale: as `LoraLinear`.
        dropout: as `LoraLinear`.
    Raises:
        ConfigError: a target names no linear layer.
    """
    network.requires_grad_(False)
    linears = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    for target in targets:
        if not matching(linears, target):
            last = sorted({name.rpartition(".")[2] for name in linears})
            raise ConfigError(f"lora_targets has {target!r}, which names no linear layer; there are {', '.join(last)}")
    for name in {name: None for target in targets for name in matching(linears, target)}:
        _put(network, name, LoraLinear(linears[name], rank, scale=scale, dropout=dropout))


def merge_lora(network: Network, *, scale: float = 1.0) -> Network:
    """`network` with each adapter, `scale` times as strong, added to the weights it stands beside."""
    for name, layer in lora_layers(network):
        layer.scale *= scale
        _put(network, name, layer.merged())
    return network


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, layer)
