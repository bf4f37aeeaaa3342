"""`python train_dalle.py`: trains a DALLE by the flags of the train_dalle.py of DALL-3 and DALLE-pytorch.

The same run as `dalle3 train dalle`, whose flags it takes too. What the originals leave off by default is off here.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dalle3.assemble import downloaded_codec
from dalle3.checkpoint import Checkpoint, build_codec, describe_codec
from dalle3.cli import finetune
from dalle3.cli.tasks import Made, RunConfig, WordsConfig, finish_dalle, open_for_dalle, read_or_train_words
from dalle3.cli.train import carry_out
from dalle3.config import add_arguments as add_flags
from dalle3.config import from_args, option
from dalle3.convert.roles import CODEC, read_as
from dalle3.data.transforms import CropConfig
from dalle3.errors import ConfigError
from dalle3.models.dalle import DalleConfig
from dalle3.runtime import launched
from dalle3.train.launch import LaunchConfig, local_device
from dalle3.train.loop import LoopConfig
from dalle3.train.optim import OptimConfig
from dalle3.train.run import Beginning, Position
from dalle3.train.tasks.dalle import DalleTask, DalleTaskConfig
from dalle3.train.trackers import TrackerConfig
from dalle3.train.tuning import LoraConfig, TuningConfig

WANDB_PROJECT = "dalle_train_transformer"
HELP = "train a DALLE by the flags of DALLE-pytorch's train_dalle.py"
DEFAULTS: dict[type, dict[str, Any]] = {
    DalleConfig: {"shift_tokens": False, "rotary_emb": False},
    DalleTaskConfig: {"caption_dropout": 0.0},
    OptimConfig: {"optimizer": "Adam", "betas": [0.9, 0.999]},
    LoopConfig: {"sample_every_n_steps": 100},
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which pictures, and where the run is kept."""

    image_text_folder: str = option(help="a folder of pictures with .txt beside them, a .jsonl, tars, or codes")
    wds: str = option("", help="of tars: the suffixes of picture and caption, as in --wds img,cap")
    dalle_output_file_name: Path = option(Path("dalle"), help="folder of the run: checkpoints, metrics, samples")
    resume: str = option("never", help="auto continues the run in that folder where there is one")


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """The model to begin with, and the tokenizers."""

    vae_path: Path | None = option(None, help="the image tokenizer of a new DALLE: a vae.pt, a folder, a .ckpt")
    dalle_path: Path | None = option(None, help="a DALLE to train on: a dalle.pt, a DeepSpeed folder, one of ours")
    taming: bool = option(False, help="the image tokenizer is one of taming's")
    vqgan_model_path: Path | None = option(None, help="its .ckpt")
    vqgan_config_path: Path | None = option(None, help="its .yaml")

    def __post_init__(self) -> None:
        """Raises ConfigError where two flags exclude each other."""
        if self.vae_path and self.dalle_path:
            raise ConfigError("--vae_path begins a DALLE and --dalle_path continues one; leave one out")


@dataclass(frozen=True, kw_only=True)
class OldFlags:
    """What the originals call by other names."""

    fp16: bool = option(False, help="the same as --dtype float16; under DeepSpeed as bfloat16")
    amp: bool = option(False, help="the same as --fp16")
    lr_decay: bool = option(False, help="the same as --lr_schedule plateau")
    distributed_backend: Literal["", "deepspeed", "dummy", "horovod"] = option("", help="deepspeed: as --deepspeed")


GROUPS = {
    "data and run": Place,
    "model": StartConfig,
    "text": WordsConfig,
    "old names": OldFlags,
    "loop": LoopConfig,
    "optimizer": OptimConfig,
    "fine-tuning": TuningConfig,
    "adapters": LoraConfig,
    "pictures": CropConfig,
    "captions": DalleTaskConfig,
    "new model": DalleConfig,
    "CLIP": finetune.NamedClip,
    "processes": LaunchConfig,
    "trackers": TrackerConfig,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` the flags."""
    for title, config in GROUPS.items():
        add_flags(parser, config, title=title)
    parser.add_argument("--distr_backend", dest="distributed_backend", default=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Trains and returns 0, also where a signal ended it early."""
    _translate(args)
    start, place = from_args(StartConfig, args), _place(args)
    loop = from_args(LoopConfig, args, base=DEFAULTS[LoopConfig])
    optim = from_args(OptimConfig, args, base=DEFAULTS[OptimConfig])
    make = _new if start.dalle_path is None else _further
    if finetune.dalle_to_begin_with(args):
        make = _tuned
    made, beginning = make(args, start, place, loop, device=local_device(loop.device))
    given = {"place": place, "loop": loop, "optim": optim, "args": args}
    return carry_out("dalle", made, **given, beginning=beginning, project=WANDB_PROJECT)


def _translate(args: argparse.Namespace) -> None:
    """Gives the old flags their new names."""
    old = from_args(OldFlags, args)
    if old.distributed_backend == "horovod":
        raise ConfigError("--distributed_backend horovod is not supported; start several processes with torchrun")
    if old.distributed_backend == "deepspeed":
        args.deepspeed = True
    if old.fp16 or old.amp:
        args.dtype = "bfloat16" if getattr(args, "deepspeed", False) else "float16"
    if old.lr_decay:
        args.lr_schedule = "plateau"


def _place(args: argparse.Namespace) -> RunConfig:
    """Place under the names of `dalle3 train`; a checkpoint of a run of ours, as --dalle_path, is continued."""
    place, path = from_args(Place, args), from_args(StartConfig, args).dalle_path
    resume = place.resume
    if resume == "never" and path is not None and (path / "train").is_dir():
        resume = str(path)
    return RunConfig(
        image_text_folder=place.image_text_folder, wds=place.wds, out=place.dalle_output_file_name, resume=resume
    )


def _new(
    args: argparse.Namespace, start: StartConfig, place: RunConfig, loop: LoopConfig, *, device: torch.device
) -> tuple[Made, None]:
    """A task with a fresh DALLE."""
    codec, source = _codec_of_new(start), open_for_dalle(place)
    words = read_or_train_words(from_args(WordsConfig, args), source)
    derived = {
        "num_text_tokens": words.vocab_size,
        "num_image_tokens": codec.config.num_tokens,
        "image_grid": describe_codec(codec)["grid"],
    }
    config = from_args(DalleConfig, args, base={**DEFAULTS[DalleConfig], **derived})
    dalle = finetune.new_dalle(config, args, words, seed=loop.seed, device=device)
    task = DalleTask(dalle, build_codec(codec, device), words, _captions(args))
    return finish_dalle(task, source, from_args(CropConfig, args), loop.seed), None


def _further(
    args: argparse.Namespace, start: StartConfig, place: RunConfig, loop: LoopConfig, *, device: torch.device
) -> tuple[Made, Beginning]:
    """A task with the DALLE of a file, and where its training stood."""
    assert start.dalle_path is not None
    given = {"config": _captions(args), "seed": loop.seed, "device": device}
    task, checkpoint = finetune.dalle_task_from(start.dalle_path, args, flag="--dalle_path", **given)
    source = open_for_dalle(place)
    made = finish_dalle(task, source, from_args(CropConfig, args), loop.seed)
    return made, _stand(checkpoint, len(source), loop)


def _tuned(
    args: argparse.Namespace, start: StartConfig, place: RunConfig, loop: LoopConfig, *, device: torch.device
) -> tuple[Made, None]:
    """A task with the DALLE of a file, or adapters beside it, and a training of its own."""
    path = finetune.dalle_to_begin_with(args)
    assert path is not None
    if start.dalle_path is not None:
        raise ConfigError("--dalle_path continues a training and --init_from begins one; leave one out")
    given = {"config": _captions(args), "seed": loop.seed, "device": device}
    task, _ = finetune.dalle_task_from(path, args, flag="--init_from", **given)
    return finish_dalle(task, open_for_dalle(place), from_args(CropConfig, args), loop.seed), None


def _captions(args: argparse.Namespace) -> DalleTaskConfig:
    return from_args(DalleTaskConfig, args, base=DEFAULTS[DalleTaskConfig])


def _codec_of_new(start: StartConfig) -> Checkpoint:
    """The image tokenizer of a new DALLE: the one named, else the one DALLE-pytorch downloaded."""
    path, config_path = start.vae_path or start.vqgan_model_path, start.vqgan_config_path
    if path is None:
        path, config_path = downloaded_codec(start.taming, asking="a new DALLE needs an image tokenizer")
    return read_as(path, CODEC, flag="--vae_path", config_path=config_path)


def _stand(checkpoint: Checkpoint, num_samples: int, loop: LoopConfig) -> Beginning:
    """Where the training of another program stood, from the epochs it counted."""
    training = checkpoint.training or {}
    consumed = int(training.get("epoch", 0)) * num_samples
    step = consumed // (loop.batch_size * loop.ga_steps * launched()[0])
    return Beginning(position=Position(step=step, consumed=consumed), moments=training.get("moments", {}))
