"""How well a model draws what its prompt says, judged by program: `python -m recipes.shapes.evaluate MODEL`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dalle3 import load
from dalle3.pipeline import Model
from dalle3.train.task import grid
from recipes.shapes.check import check
from recipes.shapes.scenes import SIZES, Kind, Scene, captions
from recipes.shapes.source import Scenes


def main() -> None:
    """Draws one picture for each of some scenes no training saw, and prints the mean of every score."""
    parser = argparse.ArgumentParser(prog="python -m recipes.shapes.evaluate", description=__doc__)
    parser.add_argument("model", type=Path, help="a model folder, or one of pictures 0000.png, 0001.png, ... to judge")
    parser.add_argument("--number", type=int, default=100, help="scenes (default: 100)")
    parser.add_argument("--kind", choices=("one", "two", "count"), default="one", help="of scene (default: one)")
    parser.add_argument("--background", default="white", help="of the scenes; any for all (default: white)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=(), help="of objects (default: all)")
    parser.add_argument("--withheld", action="store_true", help="scenes with a couple that training never shows")
    parser.add_argument("--cond_scale", type=float, default=1.0, help="guidance (default: 1)")
    parser.add_argument("--top_p", type=float, default=0.85, help="(default: 0.85)")
    parser.add_argument("--candidates", type=int, default=1, help="pictures drawn for CLIP to choose one (default: 1)")
    parser.add_argument("--middle", type=float, default=1.0, help="part of a scene a picture shows; quick's is 0.64")
    parser.add_argument("--sheet", type=Path, help="write the first 64 pictures, with their captions, here")
    args = parser.parse_args()
    background = None if args.background == "any" else args.background
    sort = {"sizes": args.sizes, "background": background, "withheld": args.withheld}
    scenes = held_out(args.number, kind=args.kind, **sort)
    pictures = list(_read(args.model, len(scenes)) if (args.model / "0000.png").exists() else _draw(args, scenes))
    scores = [check(widened(picture, args.middle), what) for picture, what in zip(pictures, scenes, strict=True)]
    print(*(f"{name} {value:.3f}" for name, value in summary(scores).items()), sep="\n")
    if args.sheet is not None:
        shown = zip(pictures[:64], scenes, strict=False)
        grid([labelled(picture, captions(what)[0]) for picture, what in shown], 8).save(args.sheet)


def held_out(
    number: int,
    *,
    kind: Kind,
    sizes: Sequence[str] = (),
    background: str | None = "white",
    withheld: bool = False,
) -> list[Scene]:
    """Scenes that no training saw."""
    sort = {"kind": kind, "sizes": sizes, "background": background, "withheld": withheld}
    return Scenes(number, size=128, split="test", **sort).scenes


def summary(scores: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every score, after `objects`: in how many pictures every object has its shape and its colour."""
    objects = float(np.mean([score["binding"] == 1 for score in scores]))
    return {"objects": objects, **{name: float(np.mean([score[name] for score in scores])) for name in scores[0]}}


def _draw(args: argparse.Namespace, scenes: list[Scene]) -> Iterator[Image.Image]:
    return draw(load(args.model), scenes, args.cond_scale, args.top_p, args.candidates)


def _read(folder: Path, number: int) -> Iterator[Image.Image]:
    for index in range(number):
        with Image.open(folder / f"{index:04d}.png") as picture:
            yield picture.convert("RGB")


def draw(model: Model, scenes: list[Scene], cond_scale: float, top_p: float, candidates: int) -> Iterator[Image.Image]:
    """A picture for the first caption of each scene, the best of `candidates` by CLIP."""
    for number, what in enumerate(scenes):
        keep = 1 if candidates > 1 else None
        prompt = captions(what)[0]
        yield model.generate(
            prompt, n=candidates, keep=keep, top_p=top_p, cond_scale=cond_scale, seed=number, batch_size=16
        )[0].image


def labelled(picture: Image.Image, caption: str) -> Image.Image:
    """A picture above its caption, 128 pixels wide."""
    tile = Image.new("RGB", (128, 156), "white")
    tile.paste(picture.resize((96, 96)), (16, 4))
    ImageDraw.Draw(tile).text((64, 128), textwrap.fill(caption, 22), fill="black", anchor="mm", align="center")
    return tile


def widened(picture: Image.Image, middle: float) -> Image.Image:
    """A picture that shows only the `middle` of a scene, in a white frame as wide as what it leaves out."""
    side = round(picture.width / middle)
    frame = Image.new("RGB", (side, side), "white")
    frame.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return frame


if __name__ == "__main__":
    main()
