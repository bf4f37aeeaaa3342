"""`python -m recipes.picto.repack SRC DST --size 128 --fmt webp`: a built data set at another size or format.

Keys, captions and attributes stay as they are. Pictures are made smaller from `SRC`, so they differ by rounding from
those a build at that size makes.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tarfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from dalle3.errors import ConfigError, Dalle3Error, DataError
from dalle3.files import whole_folder
from dalle3.log import note
from recipes.picto.samples import FORMATS, add_file, encode_picture, members

_PICTURES = (".png", ".webp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Repacks the data set and returns the exit code: 0, or 2 for a mistake the user can correct."""
    args = _parser().parse_args(arguments)
    try:
        repack(args.source, args.target, size=args.size, form=args.fmt, jobs=args.jobs)
    except Dalle3Error as error:
        note(f"error: {error}")
        return 2
    return 0


def repack(source: Path, target: Path, *, size: int, form: str, jobs: int = 1) -> None:
    """Writes the shards of `source` to the folder `target`, pictures `size` pixels wide and saved as `form`.

    Raises:
        DataError: `source` holds no shards, or one that cannot be read.
        ConfigError: the size or the number of processes is below 1.
        OutputError: `target` exists and is not empty, or cannot be written.
    """
    shards = sorted(source.glob("*.tar"))
    if not shards:
        raise DataError(f"{source} holds no .tar files; pass the folder that `recipes.picto.build` wrote")
    if min(size, jobs) < 1:
        raise ConfigError(f"--size is {size} and --jobs {jobs}; expected 1 or more")
    with whole_folder(target) as folder, ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        list(pool.map(partial(_repack_shard, folder=folder, size=size, form=form), shards))
        for document in ("ATTRIBUTION.md", "stats.json"):  # stats.json keeps the size it was built with
            if (source / document).exists():
                shutil.copy(source / document, folder)


def _repack_shard(path: Path, *, folder: Path, size: int, form: str) -> None:
    with tarfile.open(folder / path.name, "w") as new:
        for member, content in members(path):
            name, data = Path(member), content
            if name.suffix in _PICTURES:
                data, extension = encode_picture(Image.open(io.BytesIO(data)).convert("RGB"), size=size, form=form)
                name = name.with_suffix(f".{extension}")
            add_file(new, str(name), data)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.picto.repack", description=__doc__)
    parser.add_argument("source", type=Path, help="folder of shards")
    parser.add_argument("target", type=Path, help="folder to write; it must not exist or be empty")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels (default: 128)")
    parser.add_argument("--fmt", choices=tuple(FORMATS), default="png", help="webp is lossless, webp92 is not")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
