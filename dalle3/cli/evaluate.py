"""`dalle3 evaluate <what>`: how good a model is, in figures, on any captioned pictures."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dalle3.assemble import Parts, assemble
from dalle3.assemble_decoder import DecoderParts, SecondStage, add_second_stage, assemble_decoder
from dalle3.assess import DrawSettings, Kept, Redrawing, TextToImage, measure_decoder
from dalle3.checkpoint import build_codec, fingerprint
from dalle3.config import add_arguments as add_flags
from dalle3.config import from_args, option, to_dict
from dalle3.convert.roles import CODEC, read_as
from dalle3.data.open import open_pictures
from dalle3.decode import PictureDecoder
from dalle3.decode_request import DecodeSettings
from dalle3.errors import CheckpointError, ConfigError
from dalle3.evaluate.codec import measure_codec
from dalle3.evaluate.examples import Examples, read_examples
from dalle3.evaluate.judge import Judge
from dalle3.evaluate.report import Report, Row
from dalle3.files import writable_folder
from dalle3.log import note
from dalle3.rerank import load_clip
from dalle3.runtime import keep_freed_memory, pick_device

HELP = "measure a model on captioned pictures"
SHARD = "-00000"

Batches = Callable[[int], Iterator[Examples]]  # the samples of a split, so many pixels a side


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """On which samples, and where the figures go."""

    number: int | None = option(None, help="samples of each data set, chosen by the seed (default: all)")
    seed: int = option(0, help="of that choice and of everything drawn")
    wds: str = option("", help="of tars: the suffixes of picture and caption, as in --wds img,cap")
    json: Path | None = option(None, help="write the figures there; what it holds already is not measured again")
    keep_drawn: Path | None = option(None, help="folder for what was drawn: an interrupted evaluation goes on from it")

    def __post_init__(self) -> None:
        """Raises ConfigError for counts that cannot be."""
        if (self.number is not None and self.number < 2) or self.seed < 0:
            raise ConfigError(f"number is {self.number} and seed {self.seed}; they must be at least 2 and 0")


@dataclass(frozen=True, kw_only=True)
class CodecParts:
    """Which image tokenizer, and who looks at its pictures."""

    vae_path: Path = option(help="the image tokenizer: a dalle3 folder, a vae.pt, a taming .ckpt, OpenAI's pickles")
    vqgan_config_path: Path | None = option(None, help="the .yaml of a taming .ckpt")
    clip: str | None = option(None, help="a CLIP, for the Fréchet distance of redrawn to original pictures")
    device: str = option("auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")


@dataclass(frozen=True, kw_only=True)
class JudgeParts:
    """Who judges."""

    judge: str | None = option(
        None, help="a CLIP that takes no part in drawing (default: the model's, which also chooses and steers)"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` one sub-command for each part of a model."""
    parts = parser.add_subparsers(dest="part", required=True, metavar="part")
    for name, (line, configs, _) in PARTS.items():
        one = parts.add_parser(name, help=line, description=line)
        one.add_argument(
            "--data",
            nargs="+",
            required=True,
            help="data sets: folders, tars like 'val-{00000..00003}.tar', .jsonl files; NAME=PATH names one",
        )
        for title, config in {"samples and report": EvaluateConfig, **configs}.items():
            add_flags(one, config, title=title)


def run(args: argparse.Namespace) -> int:
    """Prints a table for each data set, as soon as it is measured, and returns 0.

    Raises:
        Dalle3Error: a model or a data set is missing or broken, or --json holds another evaluation.
    """
    config = from_args(EvaluateConfig, args)
    splits = name_splits(args.data)
    keep_freed_memory()
    if config.keep_drawn is not None:
        writable_folder(config.keep_drawn)
    about, measure = PARTS[args.part][2](args, config)
    asked = {key: value for key, value in to_dict(config).items() if key not in ("json", "keep_drawn")}
    report = Report({"part": args.part, **about, **asked}, config.json)
    places = {name: str(Path(path).absolute()) for name, path in splits.items()}
    missing = [name for name in splits if not report.has(name, places[name])]
    for name, path in splits.items():
        if name in missing:
            rows = measure(lambda side, path=path: _batches(path, side, config, args.part == "text"))
            report.add(name, places[name], rows)
        print("\n".join(report.lines(name)), flush=True)
    return 0


def name_splits(data: list[str]) -> dict[str, str]:
    """Where each data set is, by the name it has in the report: the one given, else that of its file.

    Raises:
        ConfigError: two have the same name.
    """
    found: dict[str, str] = {}
    for text in data:
        name, equals, path = text.partition("=")
        if not equals or "/" in name:
            name, path = Path(re.split("[{*]", text)[0]).name.split(".")[0].removesuffix(SHARD).rstrip("-"), text
        if found.setdefault(name, path) != path:
            raise ConfigError(
                f"{found[name]} and {path} are both called {name}; name them, as in --data {name}1={path}"
            )
    return found


def measure_codecs(args: argparse.Namespace, config: EvaluateConfig) -> tuple[dict[str, Any], Callable]:
    """What is evaluated, and the function that does it."""
    parts = from_args(CodecParts, args)
    device = pick_device(parts.device)
    checkpoint = read_as(parts.vae_path, CODEC, flag="--vae_path", config_path=parts.vqgan_config_path)
    codec = build_codec(checkpoint, device)
    judge = _judge(parts.clip or None, device=device)

    def measure(batches: Batches) -> list[Row]:
        return [measure_codec(codec, batches(codec.image_size), judge=judge)]

    return {"weights": fingerprint(checkpoint.state), "clip": parts.clip}, measure


def measure_decoders(args: argparse.Namespace, config: EvaluateConfig) -> tuple[dict[str, Any], Callable]:
    """What is evaluated, and the function that does it."""
    parts, settings = from_args(DecoderParts, args), from_args(DecodeSettings, args)
    decoder = assemble_decoder(parts, enlarges=False)
    if settings.upsample is not None or decoder.unet is None:
        raise ConfigError("what is measured is a decoder at the size it was trained at; leave the upsampler out")
    settings = settings.settled(decoder.unet.settings)
    side, own = decoder.unet.config.image_size, _judge(from_args(JudgeParts, args).judge, device=decoder.device)
    judge = own or _steering_judge(decoder, parts)

    def measure(batches: Batches) -> list[Row]:
        kept = Kept(config.keep_drawn)
        return measure_decoder(decoder, batches(side), settings, judge=judge, seed=config.seed, kept=kept)

    weights = decoder.hashes if own is None else {**decoder.hashes, "judge": own.hash}
    return {"weights": weights, "settings": to_dict(settings)}, measure


def measure_drawings(args: argparse.Namespace, config: EvaluateConfig) -> tuple[dict[str, Any], Callable]:
    """What is evaluated, and the function that does it."""
    parts, stage = from_args(Parts, args), from_args(SecondStage, args)
    settings, decoding = from_args(DrawSettings, args), from_args(DecodeSettings, args)
    if decoding != DecodeSettings() and not stage.diffusion:
        raise ConfigError("how the second stage decodes is of use with --diffusion only; add that")
    model, kept = assemble(parts), Kept(config.keep_drawn)
    settings = settings.settled(model.recommended)
    decoder = add_second_stage(model, parts, stage, enlarges=False) if stage.diffusion else None
    if decoder is not None and decoder.unet is not None:
        decoding = decoding.settled(decoder.unet.settings)
    redraw = None if decoder is None else Redrawing(decoder, decoding, seed=config.seed, kept=kept)
    judge = _judge(from_args(JudgeParts, args).judge, device=model.device)
    subject = TextToImage(model=model, settings=settings, seed=config.seed, kept=kept, redraw=redraw, judge=judge)
    side = model.dalle.config.image_grid * model.codec.factor
    about = {"weights": {**model.hashes, **subject.hashes}, "settings": to_dict(settings)}
    if decoder is not None:
        about |= {"decoder": decoder.hashes, "decoding": to_dict(decoding)}
    return about, lambda batches: subject.measure(batches(side))


PARTS: dict[str, tuple[str, dict[str, type], Callable[..., tuple[dict[str, Any], Callable]]]] = {
    "codec": ("an image tokenizer: how close, and how much of its codebook", {"model": CodecParts}, measure_codecs),
    "decoder": (
        "a diffusion decoder, beside the image tokenizer's own pictures",
        {"model": DecoderParts, "the judge": JudgeParts, "how it decodes": DecodeSettings},
        measure_decoders,
    ),
    "text": (
        "text to image: whether CLIP finds the right caption, with what guidance, choice and decoder add",
        {
            "model": Parts,
            "the judge": JudgeParts,
            "what is drawn": DrawSettings,
            "the second stage": SecondStage,
            "how it decodes": DecodeSettings,
        },
        measure_drawings,
    ),
}


def _batches(path: str, side: int, config: EvaluateConfig, needs_captions: bool) -> Iterator[Examples]:
    source = open_pictures(path, columns=config.wds, needs_captions=needs_captions)
    return read_examples(source, side, number=config.number, seed=config.seed)


def _judge(name: str | None, *, device: torch.device) -> Judge | None:
    """The CLIP of this name, as judge."""
    return None if name is None else Judge(*load_clip(name, device=device))


def _steering_judge(decoder: PictureDecoder, parts: DecoderParts) -> Judge | None:
    """The CLIP that is named or beside the decoder; without one there is no Fréchet distance."""
    try:
        return Judge(*decoder.clip)
    except CheckpointError as error:
        if parts.clip is not None:
            raise
        note(f"no Fréchet distance: {error}")
        return None
