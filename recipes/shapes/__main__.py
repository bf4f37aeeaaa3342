"""`python -m recipes.shapes`: writes the data set, tests its checker, checks a picture."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from PIL import Image

from recipes.shapes import selftest, shards
from recipes.shapes.check import detect
from recipes.shapes.evaluate import held_out
from recipes.shapes.scenes import BACKGROUNDS, SIZES, Kind, captions, distinct_captions


def main() -> None:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m recipes.shapes", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("gen", help="write WebDataset tars of training and withheld scenes")
    generate.add_argument("folder", type=Path)
    generate.add_argument("number", type=int, help="training scenes")
    generate.add_argument("--size", type=int, default=128, help="side in pixels (default: 128)")
    generate.add_argument("--kinds", nargs="+", choices=get_args(Kind), default=(), help="of scene (default: all)")
    generate.add_argument("--sizes", nargs="+", choices=SIZES, default=(), help="of objects (default: all)")
    generate.add_argument("--background", choices=BACKGROUNDS, help="of the scenes (default: all)")
    test = commands.add_parser("selftest", help="score the checker on right, worn and wrong pictures")
    test.add_argument("--number", type=int, default=300, help="scenes (default: 300)")
    prompts = commands.add_parser("prompts", help="write the prompts that `evaluate` asks for, for another program")
    prompts.add_argument("folder", type=Path)
    prompts.add_argument("--number", type=int, default=100, help="of each sort (default: 100)")
    prompts.add_argument("--sizes", nargs="+", choices=SIZES, default=(), help="of objects (default: all)")
    commands.add_parser("count", help="the number of distinct captions")
    see = commands.add_parser("see", help="say what the checker sees in pictures")
    see.add_argument("pictures", type=Path, nargs="+")
    run(parser.parse_args())


def run(args: argparse.Namespace) -> None:
    """Carries out the parsed command and prints its result."""
    if args.command == "gen":
        sort = {"kinds": args.kinds, "sizes": args.sizes, "background": args.background}
        print(*shards.write(args.folder, args.number, size=args.size, **sort), sep="\n")
    elif args.command == "selftest":
        print(*selftest.report(args.number), sep="\n")
    elif args.command == "prompts":
        print(*write_prompts(args.folder, args.number, args.sizes), sep="\n")
    elif args.command == "count":
        print(*(f"{kind}: {number}" for kind, number in distinct_captions().items()), sep="\n")
    else:
        for path in args.pictures:
            background, seen = detect(Image.open(path))
            print(f"{path}: {background} background", *(f"  {one}" for one in seen), sep="\n")


def write_prompts(folder: Path, number: int, sizes: Sequence[str] = ()) -> list[Path]:
    """The files written: the prompts of the scenes of one and of two objects, and of withheld couples, line by line."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, withheld in itertools.product(("one", "two"), (False, True)):
        scenes = held_out(number, kind=kind, sizes=sizes, withheld=withheld)
        paths.append(folder / f"{kind}{'_withheld' if withheld else ''}.txt")
        paths[-1].write_text("".join(f"{captions(what)[0]}\n" for what in scenes), encoding="utf-8")
    return paths


if __name__ == "__main__":
    main()
