"""Turns pictures into shards of codes once, so that a DALLE need not encode them at every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from dalle3.checkpoint import Checkpoint, describe_codec
from dalle3.data.base import BrokenSampleError, Source
from dalle3.data.codes import Codec, write_shard
from dalle3.log import warn
from dalle3.models.image_tokenizer import ImageTokenizer
from dalle3.runtime import generator
from dalle3.train.task import to_unit

T = TypeVar("T")
SHARD, BATCH = 10_000, 64


def encode(
    source: Source[T],
    transform: Callable[[T, torch.Generator], Tensor],
    codec: ImageTokenizer,
    folder: Path,
    *,
    seed: int,
) -> list[Path]:
    """The shards written: each sample once, in the source's order, cut as `transform` cuts it.

    Samples that cannot be read are named and left out.

    Raises:
        OutputError: a shard cannot be written.
    """
    paths = []
    for number, start in enumerate(range(0, len(source), SHARD)):
        indices = range(start, min(start + SHARD, len(source)))
        codes, captions = _encode_shard(source, transform, codec, indices, seed)
        paths.append(folder / f"codes-{number:05d}.safetensors")
        write_shard(paths[-1], codes, captions=captions, codec=codec_of(codec, grid=codes.shape[-1]))
    return paths


def codec_of(codec: ImageTokenizer, *, grid: int) -> Codec:
    """What a shard says of the image tokenizer that made it."""
    assert isinstance(codec, nn.Module)
    checkpoint = Checkpoint(kind=codec.kind, config=codec.config, state=codec.state_dict())
    return Codec(**describe_codec(checkpoint, grid=grid))


def _encode_shard(
    source: Source[T],
    transform: Callable[[T, torch.Generator], Tensor],
    codec: ImageTokenizer,
    indices: range,
    seed: int,
) -> tuple[Tensor, list[tuple[str, ...]]]:
    pictures, captions = [], []
    for index in indices:
        try:
            sample = source.load(index)
        except BrokenSampleError as error:
            warn(f"skipped {error}")
            continue
        pictures.append(transform(sample.content, generator(seed, "encode", index)))
        captions.append(sample.captions)
    assert isinstance(codec, nn.Module)
    device = next(codec.parameters()).device
    codes = [codec.encode(to_unit(batch, device)).cpu() for batch in torch.stack(pictures).split(BATCH)]
    return torch.cat(codes), captions
