"""`dalle3 pack OUT`: the parts of a model, trained apart, as one folder, small enough to ship."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from dalle3.assemble import check_codec
from dalle3.assemble_decoder import DECODER_FOLDER, check_conditions
from dalle3.checkpoint import Checkpoint, describe_codec, write_checkpoint
from dalle3.config import add_arguments as add_flags
from dalle3.config import from_args, option
from dalle3.convert.roles import CLIP, CODEC, DALLE, DECODER, read_as
from dalle3.decode_request import DecodeSettings
from dalle3.errors import CheckpointError, ConfigError, OutputError
from dalle3.files import whole_folder
from dalle3.models.decoder import SamplerName
from dalle3.rerank import CLIP_FOLDER
from dalle3.runtime import DTYPES
from dalle3.sampling import Recommended
from dalle3.tokenizers.load import read_tokenizer

HELP = "put the parts of a model into one folder, small enough to ship"
MB = 10**6


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What is packed, and how small."""

    dalle_path: Path = option(help="the DALLE, with its image tokenizer and its text tokenizer")
    vae_path: Path | None = option(
        None, help="an image tokenizer to take the place of the DALLE's, of which it is one with a finer decoder"
    )
    clip: Path | None = option(None, help="a CLIP to rank with")
    decoder: Path | None = option(None, help="a diffusion decoder of the same image tokenizer")
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "bfloat16", help="number format of all weights; they are computed with in the --dtype of whoever loads them"
    )
    most_mb: float = option(60.0, help="refuse to write more than so many MB")


@dataclass(frozen=True, kw_only=True)
class DecodesBest:
    """How the decoder decodes best."""

    steps: int | None = option(None, help="steps of the diffusion")
    sampler: SamplerName | None = option(None, help="how they are walked")
    guidance_scale: float | None = option(None, help="above 1 the codes pull harder")

    @property
    def settings(self) -> DecodeSettings:
        """The same, as a request has it."""
        return DecodeSettings(steps=self.steps, sampler=self.sampler, guidance_scale=self.guidance_scale)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` the folder, the parts and what is recommended with them."""
    parser.add_argument("out", type=Path, help="the folder to write")
    add_flags(parser, PackConfig, title="parts")
    add_flags(parser, Recommended, title="what it draws with unless asked otherwise (default: as the DALLE says)")
    add_flags(parser, DecodesBest, title="what it decodes with unless asked otherwise (default: as the decoder says)")


def run(args: argparse.Namespace) -> int:
    """Writes the folder, prints the size of each part, and returns 0.

    Raises:
        Dalle3Error: a part is missing, broken or of the wrong kind, two do not belong together, or all is too large.
    """
    config = from_args(PackConfig, args)
    parts = read_parts(config, draws=from_args(Recommended, args), decodes=from_args(DecodesBest, args))
    dtype = DTYPES[config.dtype]
    with whole_folder(args.out) as partial:
        for (checkpoint, path), folder in zip(parts, ("", CLIP_FOLDER, DECODER_FOLDER), strict=True):
            if checkpoint is not None:
                (partial / folder).mkdir(exist_ok=True)
                words = read_tokenizer(path, checkpoint.tokenizer) if checkpoint.tokenizer else None
                write_checkpoint(checkpoint, partial / folder, dtype=dtype, tokenizer=words)
        sizes = {path.relative_to(partial): path.stat().st_size / MB for path in sorted(partial.rglob("*.safetensors"))}
        total = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) / MB
        if total > config.most_mb:
            raise OutputError(
                f"{args.out} would take {total:.1f} MB, and --most_mb is {config.most_mb:g}: allow more, or leave out "
                f"a part ({', '.join(f'{name} {size:.1f} MB' for name, size in sizes.items())})"
            )
    print(f"{args.out}: {total:.1f} MB", *(f"  {name}: {size:.1f} MB" for name, size in sizes.items()), sep="\n")
    return 0


def read_parts(config: PackConfig, *, draws: Recommended, decodes: DecodesBest) -> list[tuple[Checkpoint | None, Path]]:
    """The DALLE with its image tokenizer, the CLIP and the decoder, None for one that is not packed, and their paths.

    The image tokenizer is there once, in the number format it is packed in: the others know it by the hash it has then.

    Args:
        config: the parts.
        draws: what the DALLE is to recommend, over what it does already.
        decodes: the same of the decoder.
    Raises:
        CheckpointError: a part is missing, broken or of the wrong kind, or two do not belong together.
        ConfigError: a recommendation that cannot be, or is for a part that is not there.
    """
    dalle = read_as(config.dalle_path, DALLE, flag="--dalle_path")
    if dalle.codec is None or dalle.tokenizer is None:
        raise CheckpointError(
            f"{config.dalle_path} does not hold its image tokenizer and its text tokenizer; `dalle3 convert` puts them "
            "beside a DALLE"
        )
    codec_path = config.vae_path or config.dalle_path
    codec = read_as(codec_path, CODEC, flag="--vae_path") if config.vae_path else dalle.codec
    check_codec(dalle, codec, dalle_path=config.dalle_path, codec_path=codec_path)
    decoder = config.decoder and read_as(config.decoder, DECODER, flag="--decoder")
    if decoder and config.decoder:
        check_conditions(decoder, codec, path=config.decoder, codec_path=codec_path)
    elif decodes != DecodesBest():
        raise ConfigError("--steps, --sampler and --guidance_scale are for a decoder; name it with --decoder")
    clip = config.clip and read_as(config.clip, CLIP, flag="--clip")
    packed = in_format(codec, DTYPES[config.dtype])
    described = describe_codec(packed, grid=dalle.config.image_grid)
    best = draws.instead_of(dalle.recommended)
    if clip is None:
        if draws.best_of is not None:
            raise ConfigError("--best_of is for a model with a CLIP, which takes the best; name it with --clip")
        best = dataclasses.replace(best, best_of=None)
    dalle = dataclasses.replace(dalle, codec=packed, recommended=best)
    decoder = decoder and dataclasses.replace(
        decoder, codec=None, codec_info=described, config=decodes.settings.over(decoder.config)
    )
    paths = (config.dalle_path, config.clip or Path(), config.decoder or Path())
    return list(zip((dalle, clip, decoder), paths, strict=True))


def in_format(checkpoint: Checkpoint, dtype: torch.dtype) -> Checkpoint:
    """A checkpoint whose floating-point weights are in `dtype`."""
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in checkpoint.state.items()
    }
    return dataclasses.replace(checkpoint, state=state)
