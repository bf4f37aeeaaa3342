"""`python -m recipes.shapes`: writes the data set, tests its checker, checks a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from recipes.shapes import selftest, shards
from recipes.shapes.check import detect
from recipes.shapes.scenes import distinct_captions


def main() -> None:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m recipes.shapes", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("gen", help="write WebDataset tars of training and withheld scenes")
    generate.add_argument("folder", type=Path)
    generate.add_argument("number", type=int, help="training scenes")
    generate.add_argument("--size", type=int, default=128, help="side in pixels (default: 128)")
    test = commands.add_parser("selftest", help="score the checker on right, worn and wrong pictures")
    test.add_argument("--number", type=int, default=300, help="scenes (default: 300)")
    commands.add_parser("count", help="the number of distinct captions")
    see = commands.add_parser("see", help="say what the checker sees in pictures")
    see.add_argument("pictures", type=Path, nargs="+")
    run(parser.parse_args())


def run(args: argparse.Namespace) -> None:
    """Carries out the parsed command and prints its result."""
    if args.command == "gen":
        print(*shards.write(args.folder, args.number, size=args.size), sep="\n")
    elif args.command == "selftest":
        print(*selftest.report(args.number), sep="\n")
    elif args.command == "count":
        print(*(f"{kind}: {number}" for kind, number in distinct_captions().items()), sep="\n")
    else:
        for path in args.pictures:
            background, seen = detect(Image.open(path))
            print(f"{path}: {background} background", *(f"  {one}" for one in seen), sep="\n")


if __name__ == "__main__":
    main()
