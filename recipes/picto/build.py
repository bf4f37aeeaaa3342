"""`python -m recipes.picto.build --cache DIR --out DIR`: downloads the pinned packages and makes the data set.

The first run makes an environment of its own below the cache, from requirements.txt, and continues in it; that needs
Python 3.11.4 or later, pip and npm, and apt-get with dpkg-deb for the clip art. Same pins, same options: same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dalle3.errors import Dalle3Error
from dalle3.log import note
from recipes.picto.fetch import enter_environment, fetch


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the data set and returns the exit code: 0, or 2 for a mistake the user can correct."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = _parser().parse_args(arguments)
    try:
        enter_environment(args.cache.resolve(), module="recipes.picto.build", arguments=arguments)
        _build(args)
    except Dalle3Error as error:
        note(f"error: {error}")
        return 2
    return 0


def _build(args: argparse.Namespace) -> None:
    from recipes.picto.make import Options, gather, make  # these need the build's environment

    options = Options(
        size=args.size,
        form=args.fmt,
        jobs=args.jobs,
        only=_names(args.only),
        splits=_names(args.splits),
        exclude=_names(args.exclude),
        limit=args.limit,
        all_captions=args.txt == "all",
    )
    options.check()
    archives = fetch(args.cache.resolve())
    tally = make(gather(args.cache.resolve(), exclude=options.exclude), args.out, options, archives=archives)
    splits = ", ".join(f"{split} {number}" for split, number in tally.splits.most_common())
    note(f"{args.out}: {tally.total} samples ({splits}); {len(tally.failures)} could not be drawn")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.picto.build", description=__doc__)
    add = parser.add_argument
    add("--cache", type=Path, required=True, help="folder of downloads, the environment and rendered objects")
    add("--out", type=Path, required=True, help="folder to write; it must not exist or be empty")
    add("--size", type=int, default=256, help="side of the pictures in pixels (default: 256)")
    add("--fmt", choices=("png", "webp", "webp92"), default="png", help="webp is lossless, webp92 is not")
    add("--jobs", type=int, default=2, help="processes (default: 2)")
    add("--only", default="", metavar="KIND,...", help="kinds of scenes: single, bg, hue, glyph, badge, pair, ...")
    add("--splits", default="", metavar="SPLIT,...", help="splits to write, such as val,heldout_pair (default: all)")
    add("--exclude", default="", metavar="STYLE,...", help="styles to leave out, such as game-icon,clip")
    add("--limit", type=int, default=0, help="try only so many scenes, the first of the shuffled plan")
    add("--txt", choices=("first", "all"), default="first", help="key.txt holds the canonical caption or all of them")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


if __name__ == "__main__":
    sys.exit(main())
