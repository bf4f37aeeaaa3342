"""Lessons: which codes a DALLE learns from in a phase of its training, and how often each is among them.

On few steps a model learns objects faster where each fills its picture, and where they stand only afterwards. And what
it shall draw so that one knows it, it has to see often: a thing of everyday in a common style more often than a symbol.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dalle3.data.codes import CodeShards, write_shard
from dalle3.errors import DataError
from dalle3.files import whole_folder
from recipes.picto import draws
from recipes.picto.plan import is_solid
from recipes.picto.samples import files

About = Mapping[str, Any]  # the json of a sample


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How often a picture is there, by what is said about it, and its first caption, which names all there is to know.

    Of 1.6 times the last is there for six pictures of ten.
    """

    times: Callable[[About], float]
    first_caption: int = 1


_ALONE = {"single": 2, "hue": 2, "bg": 1, "badge": 1, "char": 1, "glyph": 1}
_FEW = {"bg": 0.5, "badge": 0.5, "glyph": 0.2, "char": 0.7, "pair": 0.15, "cpair": 0.15, "count": 0.2}
_MANY = {"bg": 1.2, "badge": 1.2, "glyph": 0.25, "char": 0.8, "pair": 0.7, "cpair": 0.7, "count": 1.2}
_COMMON_STYLES = {"fluent-3d": 1, "fluent-flat": 1, "fluent-color": 0.6, "noto": 1, "twemoji": 1, "emojione": 1}
_THINGS = ("activities", "animals & nature", "food & drink", "objects", "travel & places")


def _alone(about: About) -> float:
    return _ALONE.get(about["kind"], 0)


def _foremost(*, things: float, hues: float, others: float, beside: Mapping[str, float]) -> Callable[[About], float]:
    """How often: things of everyday in common styles, recoloured ones, other single drawings, and the kinds beside."""

    def times(about: About) -> float:
        kind = about["kind"]
        if kind not in ("single", "hue"):
            return beside.get(kind, 0)
        everyday = _everyday(about)
        if kind == "hue":
            return hues * (everyday or 0.4)
        if wanted := everyday * _COMMON_STYLES.get(about["style"], 0):
            return things * wanted
        if about["tone"]:
            return 0.3
        if about["style"] == "fluent-hc":
            return 0.8
        return 2 if everyday else others

    return times


def _everyday(about: About) -> float:
    """How much of a thing of everyday it is: 1 for what has one word as its name, 0.5 for two, 0 for anything else."""
    name = about["concept"].lower()
    if about["tone"] or about["group"] not in _THINGS or not is_solid(name):
        return 0
    return 1 if len(name.split()) == 1 else 0.5


LESSONS = {
    "codes-first": Lesson(times=_alone),
    "codes-things": Lesson(times=_foremost(things=24, hues=7, others=1, beside=_FEW), first_caption=6),
    "codes-evenly": Lesson(times=_foremost(things=7, hues=3, others=1.5, beside=_MANY), first_caption=6),
}


def write_lesson(lesson: Lesson, tars: list[Path], codes: Path, out: Path) -> int:
    """The number of samples written to the folder `out`, as one shard.

    Args:
        tars: the data set as `recipes.picto.build` wrote it.
        codes: folder of its codes, as `dalle3 encode` wrote them.
    Raises:
        DataError: the codes are not those of all the pictures, in their order, or no picture is in the lesson.
        OutputError: `out` exists and is not empty, or cannot be written.
    """
    shards = CodeShards(sorted(codes.glob("*.safetensors")))
    scenes = list(abouts(tars))
    if [about["captions"][0] for about in scenes] != [lines[0] for lines in shards.captions]:
        raise DataError(f"{codes} does not hold the codes of the pictures in {tars[0].parent}; encode them anew")
    chosen = [place for place, about in enumerate(scenes) for _ in range(_whole(lesson.times(about), about))]
    if not chosen:
        raise DataError(f"{tars[0].parent} has no scene of this lesson; it would be empty")
    lines = [(*[first] * lesson.first_caption, *others) for first, *others in shards.captions]
    with whole_folder(out) as partial:
        write_shard(
            partial / "codes-00000.safetensors",
            shards.codes[torch.tensor(chosen)],
            captions=[lines[place] for place in chosen],
            codec=shards.codec,
        )
    return len(chosen)


def abouts(tars: list[Path]) -> Iterator[About]:
    """What is said about every sample, in order."""
    for content in files(tars, ".json"):
        yield json.loads(content)


def _whole(times: float, about: About) -> int:
    """`times`, its broken part by chance, which depends on the sample alone."""
    return int(times) + (draws.fraction("lesson", about["key"]) < times % 1)
