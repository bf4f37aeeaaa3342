"""`dalle3 average OUT MODEL MODEL...`: the mean of several trainings' weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from dalle3 import convert
from dalle3.average import average
from dalle3.checkpoint import save_checkpoint
from dalle3.errors import ConfigError
from dalle3.tokenizers.load import read_tokenizer

HELP = "write the mean of several trainings' weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` the folder and the models."""
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument(
        "models", type=Path, nargs="+", help="two or more, of one configuration, best all begun with the same weights"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the folder and returns 0.

    Raises:
        Dalle3Error: a model is missing or broken, two do not belong together, or the folder cannot be written.
    """
    if len(args.models) < 2:
        raise ConfigError(f"{args.models[0]} alone has no mean; name two models or more after {args.out}")
    mean = average([convert.read(path) for path in args.models], args.models)
    words = read_tokenizer(args.models[0], mean.tokenizer) if mean.tokenizer else None
    save_checkpoint(mean, args.out, tokenizer=words)
    print(f"{args.out}: the mean of {len(args.models)} models, {mean.kind}, {mean.num_parameters:,} parameters")
    return 0
