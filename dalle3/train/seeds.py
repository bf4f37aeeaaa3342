"""Randomness of a run: every draw is a function of the seed, a purpose and an index, so no random state is stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from dalle3.runtime import generator


@contextlib.contextmanager
def seeded(seed: int, *purpose: int | str, device: torch.device | None = None) -> Iterator[None]:
    """Seeds torch's global generators for the block and puts them back afterwards.

    Fresh weights and dropout are drawn by modules of torch, which take no generator.
    """
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(generator(seed, *purpose).initial_seed())
        yield


def on_device(rng: torch.Generator, device: torch.device) -> torch.Generator:
    """`rng` itself on the CPU, else a generator of `device` seeded by it: large noise is drawn where it is used."""
    if device.type == "cpu":
        return rng
    seed = int(torch.randint(2**62, (), generator=rng))
    return torch.Generator(device).manual_seed(seed)
