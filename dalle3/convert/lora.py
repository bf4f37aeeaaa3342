"""LoRA adapters of DALLEs: joined with the DALLE they belong to, into a whole one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import torch

from dalle3.checkpoint import Checkpoint, build, fingerprint, is_checkpoint, read_folder
from dalle3.convert import read
from dalle3.errors import CheckpointError
from dalle3.models.dalle import Dalle
from dalle3.models.dalle_lora import DalleLoraConfig, adapted
from dalle3.nn.lora import Adapters, merge_lora

KIND = "dalle_lora"


def is_adapter(path: Path) -> bool:
    """Whether `path` is the folder of an adapter."""
    return is_checkpoint(path) and read_folder(path).kind == KIND


def base_of(path: Path) -> Path:
    """Where the DALLE is that the adapter at `path` belongs to.

    Raises:
        CheckpointError: it is no longer where it was.
    """
    config: DalleLoraConfig = read_folder(path).config
    if not Path(config.base_path).exists():
        raise CheckpointError(
            f"{path} is a LoRA adapter of {config.base_path}, which is not there; pass that DALLE "
            f"(sha256 {config.base_sha256[:12]}) as --dalle_path"
        )
    return Path(config.base_path)


def joined(path: Path, *, base_path: Path | None = None, scale: float = 1.0) -> Checkpoint:
    """The DALLE at `base_path` with the adapter at `path` added to its weights.

    Args:
        path: the folder of the adapter.
        base_path: None is where the DALLE was when the adapter was trained.
        scale: how strong the adapter is, 1 as it was trained.
    Raises:
        CheckpointError: one is missing or broken, or the adapter was trained beside other weights.
    """
    adapter, base_path = read_folder(path), base_path or base_of(path)
    base, config = read(base_path), cast(DalleLoraConfig, adapter.config)
    found = fingerprint(base.state)
    if (base.kind, found) != ("dalle", config.base_sha256):
        raise CheckpointError(
            f"{path} is a LoRA adapter of the DALLE {config.base_path} (sha256 {config.base_sha256[:12]}), not of the "
            f"{base.kind} {base_path} ({found[:12]}); pass the DALLE it was trained beside as --dalle_path"
        )
    dalle = adapted(cast(Dalle, build(base, device=torch.device("cpu"))), config)
    Adapters(dalle).load_state_dict(adapter.state)
    whole = merge_lora(dalle, scale=scale).state_dict()
    told = {name: getattr(adapter, name) for name in ("tokenizer", "training", "source")}
    return dataclasses.replace(base, state=whole, codec_info=base.codec_info or adapter.codec_info, **told)
