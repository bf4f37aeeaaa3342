"""The mean of several trainings' weights, which often draws better than any one of them.

Ends of one training, or of trainings that began with the same weights, lie in one valley of the loss; their mean lies
lower (Izmailov et al., arXiv:1803.05407; Wortsman et al., arXiv:2203.05482). So do the end of a training and what it
began with (Wortsman et al., arXiv:2109.01903).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dalle3.checkpoint import Checkpoint, known_codec, place_of, verify
from dalle3.convert.lora import KIND as LORA_KIND
from dalle3.errors import CheckpointError
from dalle3.models.dalle import DalleConfig, deepened
from dalle3.shipped import located


def average(checkpoints: Sequence[Checkpoint], paths: Sequence[Path]) -> Checkpoint:
    """The mean of models of one configuration, each weighing the same; what is not weights is that of the first.

    A DALLE of fewer layers than the first takes part as what `--depth` makes of it, for the first may have begun there.

    Args:
        checkpoints: two or more.
        paths: where each was read from.
    Raises:
        CheckpointError: two are of another kind, configuration, image tokenizer or text tokenizer.
    """
    first = checkpoints[0]
    if first.kind == LORA_KIND:
        raise CheckpointError(
            f"{paths[0]} is a LoRA adapter, two factors whose mean says nothing; write each whole with `dalle3 convert`"
        )
    for checkpoint in checkpoints:
        verify(checkpoint)
    checkpoints = [_as_deep(checkpoint, first) for checkpoint in checkpoints]
    for checkpoint, path in zip(checkpoints, paths, strict=True):
        if what := _difference(first, checkpoint) or _other_words(first, paths[0], path):
            raise CheckpointError(f"{path} has {what} than {paths[0]}; only models of one make have a mean")
    return dataclasses.replace(
        first,
        state=_mean([checkpoint.state for checkpoint in checkpoints]),
        training=None,
        recommended=dataclasses.replace(first.recommended, best_of=None),  # the CLIP that would choose stays behind
    )


def _as_deep(checkpoint: Checkpoint, first: Checkpoint) -> Checkpoint:
    """The checkpoint, with as many layers as the first where both are DALLEs that differ in that alone."""
    config, own = first.config, checkpoint.config
    if not isinstance(config, DalleConfig) or not isinstance(own, DalleConfig):
        return checkpoint
    if config.shares_layers or own.depth >= config.depth or dataclasses.replace(own, depth=config.depth) != config:
        return checkpoint
    return dataclasses.replace(checkpoint, config=config, state=deepened(config, checkpoint.state))


def _difference(first: Checkpoint, other: Checkpoint) -> str:
    """In what two checkpoints differ, besides the weights that are averaged; empty where in nothing."""
    if other.kind != first.kind:
        return f"another kind ({other.kind})"
    if other.config != first.config:
        fields = (field.name for field in dataclasses.fields(first.config))
        names = [name for name in fields if getattr(other.config, name) != getattr(first.config, name)]
        return f"another configuration ({', '.join(names)})"
    if known_codec(other) != known_codec(first):
        return "another image tokenizer"
    return "another text tokenizer" if other.tokenizer != first.tokenizer else ""


def _other_words(first: Checkpoint, first_path: Path, path: Path) -> str:
    """The same of the text tokenizers' files."""
    if (name := (first.tokenizer or {}).get("file")) is None:
        return ""
    own, other = (located(folder) / name for folder in (first_path, path))
    return "" if own.read_bytes() == other.read_bytes() else "another text tokenizer"


def _mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of every tensor, in the number format of the first; one that has two names keeps both.

    Raises:
        CheckpointError: whole numbers differ, which have no mean.
    """
    means: dict[str, Tensor] = {}
    once: dict[tuple, Tensor] = {}
    for name, tensor in states[0].items():
        if (place := place_of(tensor)) not in once:
            once[place] = _mean_of(name, [state[name] for state in states])
        means[name] = once[place]
    return means


def _mean_of(name: str, tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    if first.is_floating_point():
        return torch.stack([tensor.double() for tensor in tensors]).mean(dim=0).to(first.dtype)
    if not all(torch.equal(tensor, first) for tensor in tensors):
        raise CheckpointError(f"{name} holds whole numbers that differ, which have no mean; average others")
    return first
