"""Scenes as a data set for `dalle3.data`, drawn when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice

from PIL import Image

from dalle3.data.base import Sample
from recipes.shapes.scenes import Kind, Scene, captions, render, scene


class Scenes:
    """The first `number` scenes of a split that are of the kind and on the background asked for.

    Args:
        split: the scenes of "train" are those `shards.write` writes; any other word names other scenes.
        size: side of the pictures in pixels.
        kind, background: None for any.
        sizes: of all objects; none given means any.
        withheld: scenes whose first object is a couple of shape and colour that training never shows.
        middle: the part of the scene's side that is shown. One object never leaves the middle 0.64.
    """

    def __init__(
        self,
        number: int,
        *,
        size: int,
        split: str = "train",
        kind: Kind | None = None,
        background: str | None = None,
        sizes: Sequence[str] = (),
        withheld: bool = False,
        middle: float = 1.0,
    ) -> None:
        self.size, self.middle, self.skipped = size, middle, []
        drawn = (scene(f"{split}{i}", kind=kind, withheld=withheld) for i in count())
        self.scenes: list[Scene] = list(islice(of_sort(drawn, sizes=sizes, background=background), number))

    def __len__(self) -> int:
        return len(self.scenes)

    def name(self, index: int) -> str:
        """What the scene shows."""
        return captions(self.scenes[index])[0]

    def load(self, index: int) -> Sample[Image.Image]:
        """The scene's picture and captions."""
        what = self.scenes[index]
        side = round(self.size / self.middle)
        corner = (side - self.size) // 2
        window = (corner, corner, corner + self.size, corner + self.size)
        return Sample(content=render(what, side).crop(window), captions=tuple(captions(what)))


def of_sort(
    scenes: Iterator[Scene], *, kinds: Sequence[Kind] = (), sizes: Sequence[str] = (), background: str | None = None
) -> Iterator[Scene]:
    """The scenes of these kinds, on this background, of objects of these sizes alone; none given means any."""
    for what in scenes:
        sized = not sizes or all(thing.size in sizes for thing in what.objects)
        if sized and (not kinds or what.kind in kinds) and background in (None, what.background):
            yield what
