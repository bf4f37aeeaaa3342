"""Scenes as a data set for `dalle3.data`, drawn when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, islice

import torch
from PIL import Image
from torch import Tensor

from dalle3.data.base import Sample
from dalle3.data.transforms import to_tensor
from recipes.shapes.scenes import SIZES, Kind, Scene, captions, render, scene


class Scenes:
    """The first `number` scenes of a split that are of the kind and on the background asked for.

    Args:
        split: the scenes of "train" are those `shards.write` writes; any other word names other scenes.
        size: side of the pictures in pixels.
        kind, background: None for any.
    """

    def __init__(
        self, number: int, *, size: int, split: str = "train", kind: Kind | None = None, background: str | None = None
    ) -> None:
        self.size, self.skipped = size, []
        drawn = (scene(f"{split}{i}", kind=kind) for i in count())
        wanted = (what for what in drawn if background in (None, what.background))
        self.scenes: list[Scene] = list(islice(wanted, number))

    def __len__(self) -> int:
        return len(self.scenes)

    def name(self, index: int) -> str:
        """What the scene shows."""
        return captions(self.scenes[index])[0]

    def load(self, index: int) -> Sample[Image.Image]:
        """The scene's picture and captions."""
        what = self.scenes[index]
        return Sample(content=render(what, self.size), captions=tuple(captions(what)))


@dataclass(frozen=True)
class Detail:
    """Cuts a window of `side` pixels out of a picture, near the middle: most of a scene is empty background.

    An image tokenizer is a convolution, so it learns from windows what it needs for pictures, at a part of the cost.
    """

    side: int

    def __call__(self, picture: Image.Image, rng: torch.Generator) -> Tensor:
        reach = min((picture.width - self.side) // 2, round(max(SIZES.values()) * picture.width / 2))
        middle = (picture.width - self.side) // 2
        x, y = (middle + torch.randint(-reach, reach + 1, (2,), generator=rng)).tolist()
        return to_tensor(picture.crop((x, y, x + self.side, y + self.side)))
