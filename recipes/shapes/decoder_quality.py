"""How good the decoder of `recipes.shapes.decoder` is: `python -m recipes.shapes.decoder_quality OUT`.

Pictures that nothing was trained on become codes; every way of decoding those is one row: PSNR to the original, and
CLIP score, the cosine to the scene's own caption in the eyes of `judge/`, which never steers.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle3.assemble_decoder import load_decoder
from dalle3.data.transforms import to_tensor
from dalle3.decode import Decoding, Job, PictureDecoder, to_images
from dalle3.decode_request import DecodeRequest
from dalle3.evaluate.closeness import LEAST_ERROR
from dalle3.rerank import Ranker, Scorer, Tokenize, load_clip
from dalle3.train.task import grid, to_pil, to_unit
from dalle3.train.tasks.diffusion import shrink
from diffusion.samplers import finish
from recipes.shapes.decoder import HELD_OUT, SIZE, SMALL, scenes

AT_ONCE = 16  # pictures drawn in one batch, but those that prompts of their own steer
STEERED = {"steps": 25, "clip_guidance": True}
WAYS: dict[str, dict[str, Any]] = {
    "dpm++ 2m, 3 steps": {"steps": 3},
    "dpm++ 2m, 20 steps": {"steps": 20},
    "dpm++ 2m, 20 steps, guidance_scale 1.5": {"steps": 20, "guidance_scale": 1.5},
    "dpm++ 2m, 25 steps": {"steps": 25},
    "dpm++ 2m, 25 steps, CLIP steers, fast": STEERED,
    "dpm++ 2m, 25 steps, CLIP steers, exact": {**STEERED, "guidance": "exact"},
    "ddpm, 1000 steps": {"sampler": "ddpm", "steps": 1000},
}


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Held-out pictures (N, 3, S, S) in [0, 1], their first captions, and their codes (N, h, w)."""

    images: Tensor
    captions: list[str]
    codes: Tensor


def main() -> None:
    """Prints a Markdown table, row by row."""
    parser = argparse.ArgumentParser(prog="python -m recipes.shapes.decoder_quality", description=__doc__)
    parser.add_argument("folder", type=Path, help="what recipes.shapes.decoder filled")
    parser.add_argument("--number", type=int, default=64, help="held-out pictures (default: 64)")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them (default: 0)")
    parser.add_argument("--ways", default="", help="only ways of decoding with this in their name")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the UNet")
    parser.add_argument("--clip_guidance_scale", type=float, default=1000.0, help="(default: 1000)")
    parser.add_argument("--json", type=Path, help="keep the figures of every picture here")
    parser.add_argument("--sheets", type=Path, help="a folder for a sheet of every way: codes, decoded, original")
    args = parser.parse_args()
    torch.set_num_threads(1)
    decoder = load_decoder(args.folder / "decoder", clip=str(args.folder / "clip"), device="cpu", dtype=args.dtype)
    judge = load_clip(args.folder / "judge", device=torch.device("cpu"))
    examples = read_examples(decoder, args.first, args.number)
    ways = {name: {**way} for name, way in WAYS.items() if args.ways in name}
    for way in ways.values():
        if "clip_guidance" in way:
            way["clip_guidance_scale"] = args.clip_guidance_scale
    figures = {}
    print("| pictures | PSNR, dB | CLIP score | s a picture |", "|---|---|---|---|", sep="\n")
    for name, pictures, seconds in drawn(decoder, examples, ways, first=args.first):
        figures[name] = measured(pictures, examples, judge)
        means = (sum(values) / len(values) for values in figures[name].values())
        print(f"| {name} | {next(means):.2f} | {next(means):.4f} | {seconds:.2f} |", flush=True)
        if args.sheets:
            args.sheets.mkdir(parents=True, exist_ok=True)
            sheet(examples, enlarged(decoder, examples.codes), pictures).save(args.sheets / f"{file_name(name)}.png")
    if args.json:
        args.json.write_text(json.dumps(figures))


@torch.no_grad()
def read_examples(decoder: PictureDecoder, first: int, number: int) -> Examples:
    """The held-out pictures from number `first` on."""
    assert decoder.codec is not None
    source = scenes(SIZE, number=first + number, split=HELD_OUT)
    samples = [source.load(index) for index in range(first, first + number)]
    images = to_unit(torch.stack([to_tensor(sample.content) for sample in samples]), torch.device("cpu"))
    codes = decoder.codec.encode(shrink(images, SIZE // SMALL))
    return Examples(images=images, captions=[sample.captions[0] for sample in samples], codes=codes)


def drawn(
    decoder: PictureDecoder, examples: Examples, ways: dict[str, dict[str, Any]], *, first: int
) -> Iterator[tuple[str, Tensor, float]]:
    """The name of each way of decoding, its pictures (N, 3, S, S) in [0, 1], and seconds for one of them.

    The first two are the bounds: the originals themselves, and the image tokenizer's own pictures.
    """
    yield "the originals", examples.images, 0.0
    yield "codes alone, enlarged", enlarged(decoder, examples.codes), 0.0
    total = len(examples.codes)
    for name, way in ways.items():
        before, size = time.perf_counter(), 1 if "clip_guidance" in way else AT_ONCE
        found = [
            decoded(
                decoder,
                examples.codes[start : start + size],
                text=examples.captions[start],
                indices=range(first + start, first + min(start + size, total)),
                way=way,
            )
            for start in range(0, total, size)
        ]
        yield name, torch.cat(found), (time.perf_counter() - before) / total


def decoded(
    decoder: PictureDecoder, codes: Tensor, *, text: str, indices: Sequence[int], way: dict[str, Any]
) -> Tensor:
    """The pictures (B, 3, S, S) in [0, 1] that decode.py makes of codes (B, h, w), but several at once on a CPU too."""
    request = DecodeRequest(text=text, **way)
    (stage,) = Decoding(decoder, request, [Job(name="codes", codes=codes[0])]).stages
    pixels = finish(stage.walk(codes, decoder.side(codes.shape[1], name="codes"), seed=request.seed, indices=indices))
    return torch.stack([to_tensor(image) for image in to_images(pixels)]).float() / 255


@torch.no_grad()
def enlarged(decoder: PictureDecoder, codes: Tensor) -> Tensor:
    """The image tokenizer's pictures of codes (N, h, w), stretched to the decoder's size."""
    assert decoder.codec is not None
    pictures = decoder.codec.decode(codes)
    return F.interpolate(pictures, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)


def measured(pictures: Tensor, examples: Examples, judge: tuple[Scorer, Tokenize]) -> dict[str, list[float]]:
    """PSNR in dB and CLIP score of each picture (N, 3, S, S)."""
    errors = (pictures - examples.images).square().mean(dim=(1, 2, 3)).clamp(min=LEAST_ERROR)
    scores = [
        float(Ranker(*judge, caption).scores(picture[None]))
        for picture, caption in zip(pictures, examples.captions, strict=True)
    ]
    return {"psnr": (-10 * errors.log10()).tolist(), "clip_score": scores}


def sheet(examples: Examples, rough: Tensor, pictures: Tensor) -> Image.Image:
    """Eight pictures twice as large: of the codes alone, decoded, and the originals, in rows."""
    rows = torch.cat([some[:8] for some in (rough, pictures, examples.images)])
    return grid(to_pil(rows.repeat_interleave(2, 2).repeat_interleave(2, 3)), min(8, len(pictures)))


def file_name(way: str) -> str:
    """The name of a way of decoding as one of a file."""
    return re.sub(r"[^a-z0-9.]+", "-", way.lower())


if __name__ == "__main__":
    main()
