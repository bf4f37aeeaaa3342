"""Batches as a function of their position: the order depends on (seed, epoch), and nothing is remembered.

Position p of the endless stream of a data set of n samples is sample `order(n, seed, p // n)[p % n]`. Which caption and
which crop it gets is drawn for p alone. A run that knows how many samples it has consumed therefore continues exactly,
whatever the batch size, the number of workers or the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dalle3.data.base import BrokenSampleError, PictureFiles, Source, reduced
from dalle3.data.transforms import Crop
from dalle3.errors import DataError
from dalle3.runtime import generator

T = TypeVar("T")

MOST_BROKEN = 100  # neighbours tried before a data set is given up


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample ready for a network, and why others before it were left out."""

    content: Tensor
    caption: str
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples together: pictures uint8 (B, 3, H, W) or codes (B, h, w), and their captions ("" where none)."""

    content: Tensor
    captions: tuple[str, ...]
    skipped: tuple[str, ...] = ()


@lru_cache(maxsize=2)
def order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """The samples of one epoch in the order they come, (num_samples,), int64."""
    return torch.randperm(num_samples, generator=generator(seed, "order", epoch))


class Stream(Generic[T]):
    """The endless stream of a source: `stream[p]` is the example at position p."""

    def __init__(self, source: Source[T], transform: Callable[[T, torch.Generator], Tensor], *, seed: int) -> None:
        self.source, self.transform, self.seed = no_larger_than_needed(source, transform), transform, seed

    def __getitem__(self, position: int) -> Example:
        """The example at `position`; a broken sample's place is taken by the next in the order.

        Raises:
            DataError: a hundred samples in a row are broken.
        """
        skipped: list[str] = []
        for attempt in range(MOST_BROKEN):
            try:
                return self._load(position, attempt, skipped)
            except BrokenSampleError as error:
                skipped.append(str(error))
        raise DataError(f"{MOST_BROKEN} samples in a row cannot be used; the last one: {skipped[-1]}")

    def _load(self, position: int, attempt: int, skipped: list[str]) -> Example:
        epoch, place = divmod(position + attempt, len(self.source))
        index = int(order(len(self.source), self.seed, epoch)[place])
        sample, rng = self.source.load(index), generator(self.seed, "example", position)
        captions = sample.captions or ("",)
        choice = int(torch.randint(len(captions), (), generator=rng))
        content = self.transform(sample.content, rng)
        return Example(content=content, caption=captions[choice], skipped=tuple(skipped))


def batches(
    stream: Stream, batch_size: int, *, consumed: int = 0, rank: int = 0, world: int = 1, num_workers: int = 0
) -> Iterator[Batch]:
    """The endless batches of a stream from position `consumed` on.

    With several processes each gets every `world`-th example, so that together they read what one would.
    `num_workers` processes read ahead; it changes the speed, never the examples.
    """
    loader = DataLoader(
        stream,  # type: ignore[arg-type]  # only __getitem__ is asked for
        batch_sampler=_Positions(batch_size, consumed + rank, world),
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=_stand_apart,
        generator=torch.Generator(),  # unused, but without one the loader draws from the global generator
    )
    return iter(loader)


def collate(examples: list[Example]) -> Batch:
    """The examples as one batch."""
    return Batch(
        content=torch.stack([example.content for example in examples]),
        captions=tuple(example.caption for example in examples),
        skipped=tuple(line for example in examples for line in example.skipped),
    )


def no_larger_than_needed(source: Source[T], transform: Callable[[T, torch.Generator], Tensor]) -> Source[T]:
    """The source, which decodes its large JPEGs no larger than the crop to which they come needs them."""
    if isinstance(transform, Crop) and isinstance(source, PictureFiles):
        return cast(Source[T], reduced(source, transform.at_least))
    return source


def _stand_apart(_reader: int) -> None:
    """Takes a process that reads ahead out of its group.

    torchrun hands SIGTERM on to the groups of its processes. It would end the reader at once, and with it the run,
    which has a step to finish and a checkpoint to write.
    """
    if hasattr(os, "setpgrp"):  # Windows knows no groups
        os.setpgrp()


class _Positions:
    """The positions of each batch, without end."""

    def __init__(self, batch_size: int, first: int, step: int) -> None:
        self.batch_size, self.first, self.step = batch_size, first, step

    def __iter__(self) -> Iterator[list[int]]:
        position = self.first
        while True:
            yield [position + i * self.step for i in range(self.batch_size)]
            position += self.batch_size * self.step
