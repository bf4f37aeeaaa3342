"""`python -m recipes.picto.subsets DATA OUT`: the splits that measure generalisation, one tar each.

OUT gets val.tar, its kinds apart (val_single.tar, ...), and the heldout splits, with the pictures and captions of DATA:
what `dalle3 evaluate` takes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from dalle3.errors import Dalle3Error, DataError
from dalle3.files import whole_folder
from dalle3.log import note
from recipes.picto.samples import add_file, members
from recipes.picto.splits import HELD_OUT, VAL

Member = tuple[str, bytes]


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the tars and returns the exit code: 0, or 2 for a mistake the user can correct."""
    parser = argparse.ArgumentParser(prog="python -m recipes.picto.subsets", description=__doc__)
    parser.add_argument("data", type=Path, help="folder that recipes.picto.build wrote")
    parser.add_argument("out", type=Path, help="folder to write; it must not exist or be empty")
    args = parser.parse_args(arguments)
    try:
        for name, number in write_subsets(args.data, args.out).items():
            note(f"{args.out / name}.tar: {number} pictures")
    except Dalle3Error as error:
        note(f"error: {error}")
        return 2
    return 0


def write_subsets(data: Path, out: Path) -> dict[str, int]:
    """The number of samples in each tar, by its name.

    Raises:
        DataError: there is no tar of a split.
        OutputError: `out` exists and is not empty, or cannot be written.
    """
    with whole_folder(out) as folder:
        counts = {split: _write(folder, split, samples(data, split)) for split in (VAL, *HELD_OUT)}
        kinds = sorted({_kind(sample) for sample in samples(data, VAL)})
        for kind in kinds:
            some = (sample for sample in samples(data, VAL) if _kind(sample) == kind)
            counts[f"{VAL}_{kind}"] = _write(folder, f"{VAL}_{kind}", some)
    return counts


def samples(data: Path, split: str) -> Iterator[list[Member]]:
    """The members of each sample of a split: its picture, captions and attributes, by name.

    Raises:
        DataError: there is no tar of it, or one cannot be read.
    """
    tars = sorted(data.glob(f"{split}-*.tar"))
    if not tars:
        raise DataError(f"{data} holds no {split}-*.tar; pass the folder that `recipes.picto.build` wrote")
    for path in tars:
        for _, sample in groupby(members(path), key=lambda member: member[0].partition(".")[0]):
            yield list(sample)


def _write(folder: Path, name: str, found: Iterator[list[Member]]) -> int:
    number = 0
    with tarfile.open(folder / f"{name}.tar", "w") as tar:
        for sample in found:
            for member, content in sample:
                add_file(tar, member, content)
            number += 1
    return number


def _kind(sample: list[Member]) -> str:
    return next(json.loads(content)["kind"] for name, content in sample if name.endswith(".json"))


if __name__ == "__main__":
    sys.exit(main())
