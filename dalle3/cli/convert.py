"""`dalle3 convert FILE OUT`: any checkpoint as a folder of ours, with what it needs beside it."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from dalle3 import convert
from dalle3.checkpoint import CODECS, Checkpoint, save_checkpoint
from dalle3.config import add_arguments as add_flags
from dalle3.convert.guided_diffusion import Layout
from dalle3.convert.lora import is_adapter, joined
from dalle3.convert.report import CLIP_VOCABULARY, needs
from dalle3.convert.roles import CODEC, read_as
from dalle3.errors import ConfigError, OutputError
from dalle3.runtime import DTYPES
from dalle3.tokenizers.base import Tokenizer
from dalle3.tokenizers.load import load_tokenizer, read_tokenizer
from diffusion.presets import PRESETS
from diffusion.process import ProcessConfig
from diffusion.unet import UNetConfig

HELP = "write any checkpoint as a dalle3 folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` the file, the folder and what belongs into it."""
    parser.add_argument("file", type=Path, help="a file or folder of weights of any format in docs/FORMATS.md")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--dtype", choices=DTYPES, help="number format of the weights (default: as they are)")
    parser.add_argument("--vae_path", type=Path, help="the image tokenizer to put beside a DALLE or a decoder")
    parser.add_argument("--vqgan_model_path", type=Path, help="the same, a .ckpt of taming")
    parser.add_argument("--vqgan_config_path", type=Path, help="its yaml, or that of FILE")
    parser.add_argument("--dalle_path", type=Path, help="of a LoRA adapter: its DALLE, where that has moved")
    parser.add_argument("--lora_scale", type=float, default=1.0, help="how strong the adapter is in the whole DALLE")
    parser.add_argument("--bpe_path", type=Path, help="the text tokenizer to put beside a DALLE: youtokentome's, or")
    parser.add_argument("--hug", action="store_true", help="with --hug, a tokenizers JSON")
    parser.add_argument("--chinese", action="store_true", help="the text tokenizer is bert-base-chinese")
    parser.add_argument("--preset", choices=PRESETS, help="the published model a UNet of guided-diffusion is")
    parser.add_argument("--small_size", type=int, help="pixels a side that an upsampler was trained to enlarge")
    add_flags(parser, UNetConfig, title="a UNet's layout, where no preset has it, as in guided-diffusion")
    add_flags(parser, ProcessConfig, title="the process a UNet was trained under")


def run(args: argparse.Namespace) -> int:
    """Writes the folder, prints what is in it and what was left out, and returns 0.

    Raises:
        Dalle3Error: a file is missing, broken or of the wrong kind, or two do not belong together.
    """
    codec_path = _codec_path(args)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise OutputError(f"{args.out} exists already; name another folder or remove it first")
    layout = _layout(args)
    checkpoint = _read(args, None if codec_path else args.vqgan_config_path, layout)
    if layout.says_something and (checkpoint.source is None or checkpoint.source.format != "guided-diffusion"):
        raise ConfigError(f"{args.file} is no bare UNet of guided-diffusion, whose layout must be said; leave that out")
    if codec_path:
        _add_codec(checkpoint, codec_path, args)
    tokenizer = _tokenizer(checkpoint, args)
    # The CLIP that would choose among candidates stays behind.
    checkpoint.recommended = dataclasses.replace(checkpoint.recommended, best_of=None)
    save_checkpoint(checkpoint, args.out, dtype=DTYPES.get(args.dtype), tokenizer=tokenizer)
    _tell(checkpoint, tokenizer, args.out)
    return 0


def _read(args: argparse.Namespace, config_path: Path | None, layout: Layout) -> Checkpoint:
    """What the file holds; an adapter, together with its DALLE."""
    if is_adapter(args.file):
        return joined(args.file, base_path=args.dalle_path, scale=args.lora_scale)
    if args.dalle_path or args.lora_scale != 1:
        raise ConfigError(f"{args.file} is no LoRA adapter, and has no use for --dalle_path and --lora_scale")
    return convert.read(args.file, config_path=config_path, layout=layout)


def _layout(args: argparse.Namespace) -> Layout:
    unet, process = (
        {field.name: getattr(args, field.name) for field in dataclasses.fields(cls) if hasattr(args, field.name)}
        for cls in (UNetConfig, ProcessConfig)
    )
    return Layout(preset=args.preset, unet=unet, process=process, small_size=args.small_size)


def _codec_path(args: argparse.Namespace) -> Path | None:
    if args.vae_path and args.vqgan_model_path:
        raise ConfigError("--vae_path and --vqgan_model_path both name the image tokenizer; leave one out")
    return args.vae_path or args.vqgan_model_path


def _add_codec(checkpoint: Checkpoint, codec_path: Path, args: argparse.Namespace) -> None:
    if checkpoint.kind not in ("dalle", "unet"):
        raise ConfigError(f"{args.file} is a {checkpoint.kind}, beside which no image tokenizer belongs; leave it out")
    flag = "--vae_path" if args.vae_path else "--vqgan_model_path"
    codec = read_as(codec_path, CODEC, flag=flag, config_path=args.vqgan_config_path)
    # These bring all that draws with them, which copying weights does without.
    if checkpoint.kind == "unet":
        from dalle3.assemble_decoder import check_conditions

        check_conditions(checkpoint, codec, path=args.file, codec_path=codec_path)
    else:
        from dalle3.assemble import check_codec

        check_codec(checkpoint, codec, dalle_path=args.file, codec_path=codec_path)
    checkpoint.codec, checkpoint.codec_info = codec, None


def _tokenizer(checkpoint: Checkpoint, args: argparse.Namespace) -> Tokenizer | None:
    """The text tokenizer that belongs beside a model: the one named, its own, or for a DALLE CLIP's by its size."""
    named = bool(args.bpe_path or args.hug or args.chinese)
    if checkpoint.kind in CODECS and named:
        raise ConfigError(f"{args.file} is a {checkpoint.kind}, which reads no text; leave the tokenizer out")
    if not named and checkpoint.tokenizer is not None:
        return read_tokenizer(args.file, checkpoint.tokenizer)
    if not named and (checkpoint.kind != "dalle" or checkpoint.config.num_text_tokens != CLIP_VOCABULARY):
        return None
    tokenizer = load_tokenizer(args.bpe_path, hug=args.hug, chinese=args.chinese)
    if checkpoint.kind == "dalle":
        from dalle3.assemble import check_tokenizer

        check_tokenizer(checkpoint.config, tokenizer, dalle_path=args.file)
    return tokenizer


def _tell(checkpoint: Checkpoint, tokenizer: Tokenizer | None, out: Path) -> None:
    print(f"{out}: {checkpoint.kind}, {checkpoint.num_parameters:,} parameters")
    for part in (checkpoint.codec, tokenizer):
        if part is not None:
            print(f"  with {part.kind}")
    for note in checkpoint.notes:
        print(f"  assumed: {note}")
    for line in checkpoint.dropped:
        print(f"  left out: {line}")
    for need in needs(checkpoint):
        if tokenizer is None or not need.startswith("a text tokenizer"):
            print(f"  needs beside it: {need}")
