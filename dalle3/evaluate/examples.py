"""The samples of a data set that a model is held against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from dalle3.data.base import Source, readable
from dalle3.data.loader import order
from dalle3.data.transforms import Crop, CropConfig
from dalle3.errors import DataError
from dalle3.runtime import generator

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Pictures (B, 3, S, S) in [0, 1] and the first caption of each, "" where there is none."""

    pictures: Tensor
    captions: tuple[str, ...]


def read_examples(source: Source[Image.Image], side: int, *, number: int | None, seed: int) -> Iterator[Examples]:
    """The samples in batches, cut square at the centre and resized to `side`; what cannot be read is named.

    Args:
        number: of samples, a choice that depends on `seed`; None takes all.
    Raises:
        DataError: none can be read.
    """
    cut, taken = Crop(side, CropConfig(random_resize_crop_lower_ratio=1.0)), 0
    indices = torch.arange(len(source)) if number is None else order(len(source), seed, 0)[:number].sort().values
    for some in indices.split(BATCH):
        found = [sample for _, sample in readable(source, some.tolist())]
        if not found:
            continue
        taken += len(found)
        pixels = torch.stack([cut(sample.content, generator(seed)) for sample in found])
        yield Examples(pictures=pixels.float() / 255, captions=tuple((sample.captions or ("",))[0] for sample in found))
    if not taken:
        raise DataError(f"none of {len(indices)} samples can be read; see the warnings above")
