"""Turns pictures into shards of codes once, so that a DALLE need not encode them at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from dalle3.checkpoint import checkpoint_of, describe_codec
from dalle3.data.base import Source, readable
from dalle3.data.codes import Codec, codec_of_shard, write_shard
from dalle3.data.loader import no_larger_than_needed
from dalle3.errors import DataError
from dalle3.models.image_tokenizer import ImageTokenizer
from dalle3.runtime import generator
from dalle3.train.task import to_unit

T = TypeVar("T")


class Encoder(Protocol):
    """An nn.Module that makes codes (B, h, w) of pictures (B, 3, H, W) in [0, 1]: an image tokenizer, or more."""

    def encode(self, images: Tensor) -> Tensor:
        """Codes, int64."""
        ...


SHARD, BATCH = 10_000, 64


def encode(
    source: Source[T],
    transform: Callable[[T, torch.Generator], Tensor],
    codec: ImageTokenizer,
    folder: Path,
    *,
    seed: int,
    shard_size: int = SHARD,
) -> list[Path]:
    """The shards written: each sample once, in the source's order, cut as `transform` cuts it.

    Samples that cannot be read are named and left out.

    Raises:
        OutputError: a shard cannot be written.
    """
    paths = []
    for number, start in enumerate(range(0, len(source), shard_size)):
        indices = range(start, min(start + shard_size, len(source)))
        codes, captions = _encode_shard(source, transform, codec, indices, seed)
        if captions:
            paths.append(shard_path(folder, number))
            write_shard(paths[-1], codes, captions=captions, codec=codec_of(codec, grid=codes.shape[-1]))
    return paths


def encode_missing(
    source: Source[T],
    transform: Callable[[T, torch.Generator], Tensor],
    encoder: Encoder,
    folder: Path,
    *,
    maker: Codec,
    seed: int,
    shard_size: int = SHARD,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[Path, int]]:
    """Writes those shards of `encode` that are not there yet, every `world`-th from `rank` on; yields path and samples.

    A shard is whole or absent, so what an interrupted call left is kept.

    Args:
        maker: the image tokenizer of `encoder`, as the shards say it.
    Raises:
        DataError: a shard that is there was made by another image tokenizer.
        OutputError: a shard cannot be written.
    """
    for number in range(rank, -(-len(source) // shard_size), world):
        path = shard_path(folder, number)
        if path.exists():
            _check_maker(path, maker)
            continue
        indices = range(number * shard_size, min((number + 1) * shard_size, len(source)))
        codes, captions = _encode_shard(source, transform, encoder, indices, seed)
        if captions:
            write_shard(path, codes, captions=captions, codec=maker)
        yield path, len(captions)


def shard_path(folder: Path, number: int) -> Path:
    """The file of one shard."""
    return folder / f"codes-{number:05d}.safetensors"


def codec_of(codec: ImageTokenizer, *, grid: int) -> Codec:
    """What a shard says of the image tokenizer that made it."""
    return Codec(**describe_codec(checkpoint_of(codec), grid=grid))


def _check_maker(path: Path, maker: Codec) -> None:
    found = codec_of_shard(path)
    if found != maker:
        raise DataError(f"{path} was made by {found}, and this is {maker}; name another folder or remove it first")


def _encode_shard(
    source: Source[T],
    transform: Callable[[T, torch.Generator], Tensor],
    encoder: Encoder,
    indices: Sequence[int],
    seed: int,
) -> tuple[Tensor, list[tuple[str, ...]]]:
    """Codes (N, h, w) and captions of the samples that can be read."""
    assert isinstance(encoder, nn.Module)
    device = next(encoder.parameters()).device
    samples = (  # transformed one by one, for a batch of whole photographs would fill the memory
        (transform(sample.content, generator(seed, "encode", index)), sample.captions)
        for index, sample in readable(no_larger_than_needed(source, transform), indices)
    )
    codes, captions = [], []
    while batch := list(islice(samples, BATCH)):
        codes.append(encoder.encode(to_unit(torch.stack([picture for picture, _ in batch]), device)).cpu())
        captions += [lines for _, lines in batch]
    return torch.cat(codes) if codes else torch.empty(0, 1, 1), captions
