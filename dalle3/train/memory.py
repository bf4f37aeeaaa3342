"""Less memory for more work: activations that are found anew in the backward pass (arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dalle3.models.clip import Clip
from dalle3.models.discrete_vae import ResBlock as VaeBlock
from dalle3.models.vqgan_autoencoder import AttnBlock, ResnetBlock
from dalle3.nn.transformer import Transformer
from diffusion.unet_blocks import AttentionBlock, ResBlock


def checkpoint_activations(objective: nn.Module) -> None:
    """Lets the blocks of an objective's models keep their inputs alone; what lies inside is computed twice.

    Losses and gradients stay the same to the bit, dropout included.
    """
    for module in list(objective.modules()):
        if isinstance(module, Transformer):
            module.checkpointing = True
        elif isinstance(module, (ResBlock, AttentionBlock)):
            module.use_checkpoint = True
    for block in _plain_blocks(objective):
        block.forward = _recomputed(block.forward)


def _plain_blocks(objective: nn.Module) -> Iterator[nn.Module]:
    """Blocks that cannot do it themselves."""
    for module in list(objective.modules()):
        if isinstance(module, (VaeBlock, ResnetBlock, AttnBlock)):
            yield module
        elif isinstance(module, Clip):
            for layers in (part for part in module.modules() if isinstance(part, nn.ModuleList)):
                yield from layers


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return forward(*args, **kwargs)

    return run
