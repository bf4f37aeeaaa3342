"""The codes that a DALLE learns from first: things alone, twice as often as badges and characters; no pairs, no counts.

On few steps a model learns objects faster where each fills its picture, and where they stand only afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from dalle3.data.codes import CodeShards, write_shard
from dalle3.errors import DataError
from dalle3.files import whole_folder
from recipes.picto.samples import files

FIRST = {"single": 2, "hue": 2, "bg": 1, "badge": 1, "char": 1, "glyph": 1}  # times each kind of scene is there


def first_lesson(tars: list[Path], codes: Path, out: Path, *, times: Mapping[str, int] = FIRST) -> int:
    """The number of samples written to the folder `out`, as one shard.

    Args:
        tars: the data set as `recipes.picto.build` wrote it.
        codes: folder of its codes, as `dalle3 encode` wrote them.
    Raises:
        DataError: the codes are not those of all the pictures, in their order, or no picture is of a kind in `times`.
        OutputError: `out` exists and is not empty, or cannot be written.
    """
    shards = CodeShards(sorted(codes.glob("*.safetensors")))
    scenes = list(kinds(tars))
    if [(caption,) for _, caption in scenes] != [lines[:1] for lines in shards.captions]:
        raise DataError(f"{codes} does not hold the codes of the pictures in {tars[0].parent}; encode them anew")
    chosen = [index for index, (kind, _) in enumerate(scenes) for _ in range(times.get(kind, 0))]
    if not chosen:
        raise DataError(f"{tars[0].parent} has no scene of {', '.join(times)}; the first lesson would be empty")
    with whole_folder(out) as partial:
        captions = [shards.captions[index] for index in chosen]
        write_shard(
            partial / "codes-00000.safetensors",
            shards.codes[torch.tensor(chosen)],
            captions=captions,
            codec=shards.codec,
        )
    return len(chosen)


def kinds(tars: list[Path]) -> Iterator[tuple[str, str]]:
    """Kind of scene and first caption of every sample, in order."""
    for content in files(tars, ".json"):
        about = json.loads(content)
        yield about["kind"], about["captions"][0]
