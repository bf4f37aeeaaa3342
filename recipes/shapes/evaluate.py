"""How well a model draws what its prompt says, judged by program: `python -m recipes.shapes.evaluate MODEL`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dalle3 import load
from dalle3.pipeline import Model
from dalle3.train.task import grid
from recipes.shapes.check import check
from recipes.shapes.scenes import Scene, captions
from recipes.shapes.source import Scenes


def main() -> None:
    """Draws one picture for each of some scenes no training saw, and prints the mean of every score."""
    parser = argparse.ArgumentParser(prog="python -m recipes.shapes.evaluate", description=__doc__)
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("--number", type=int, default=100, help="scenes (default: 100)")
    parser.add_argument("--kind", choices=("one", "two", "count"), default="one", help="of scene (default: one)")
    parser.add_argument("--background", default="white", help="of the scenes; any for all (default: white)")
    parser.add_argument("--cond_scale", type=float, default=1.0, help="guidance (default: 1)")
    parser.add_argument("--top_p", type=float, default=0.85, help="(default: 0.85)")
    parser.add_argument("--candidates", type=int, default=1, help="pictures drawn for CLIP to choose one (default: 1)")
    parser.add_argument("--middle", type=float, default=1.0, help="part of a scene a picture shows; quick's is 0.64")
    parser.add_argument("--sheet", type=Path, help="write the first 64 pictures, with their captions, here")
    args = parser.parse_args()
    background = None if args.background == "any" else args.background
    scenes = Scenes(args.number, size=128, split="test", kind=args.kind, background=background).scenes
    model = load(args.model)
    pictures = list(draw(model, scenes, args.cond_scale, args.top_p, args.candidates))
    scores = [check(widened(picture, args.middle), what) for picture, what in zip(pictures, scenes, strict=True)]
    print(*(f"{name} {np.mean([score[name] for score in scores]):.3f}" for name in scores[0]), sep="\n")
    if args.sheet is not None:
        shown = zip(pictures[:64], scenes, strict=False)
        grid([labelled(picture, captions(what)[0]) for picture, what in shown], 8).save(args.sheet)


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
    tile = Image.new("RGB", (128, 134), "white")
    tile.paste(picture.resize((96, 96)), (16, 4))
    ImageDraw.Draw(tile).text((64, 117), textwrap.fill(caption, 20), fill="black", anchor="mm", align="center")
    return tile


def widened(picture: Image.Image, middle: float) -> Image.Image:
    """A picture that shows only the `middle` of a scene, in a white frame as wide as what it leaves out."""
    side = round(picture.width / middle)
    frame = Image.new("RGB", (side, side), "white")
    frame.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return frame


if __name__ == "__main__":
    main()
