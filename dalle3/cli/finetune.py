"""Fine-tuning behind `dalle3 train` and `train_dalle.py`: which weights a run begins with, and which of them train."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dalle3.assemble import Parts, check_codec, check_tokenizer, read_codec, read_words
from dalle3.checkpoint import Checkpoint, blank, build, build_codec, differences, network_class, save_checkpoint
from dalle3.config import from_args, option, to_dict
from dalle3.convert.guided_diffusion import Layout
from dalle3.convert.lora import is_adapter, joined
from dalle3.convert.roles import DALLE, Role, read_as
from dalle3.errors import ConfigError
from dalle3.models.clip_text import text_half
from dalle3.models.dalle import Dalle, DalleConfig, deepened, with_maps
from dalle3.rerank import CLIP_FOLDER
from dalle3.shipped import located
from dalle3.tokenizers.base import Tokenizer, vocabulary
from dalle3.tokenizers.load import read_tokenizer
from dalle3.train.seeds import seeded
from dalle3.train.task import Task
from dalle3.train.tasks.dalle import DalleLoraTask, DalleTask, DalleTaskConfig
from dalle3.train.tuning import LoraConfig, TuningConfig
from diffusion.process import ProcessConfig
from diffusion.unet import UNetConfig

MERGED = "merged"  # the folder in a run's
# What a model may be trained on with; other flags would make it another model.
MAY_CHANGE = {
    *("attn_dropout", "ff_dropout", "dropout", "loss_img_weight", "kl_div_loss_weight", "kl_weight", "beta"),
    *("smooth_l1_loss", "temperature", "straight_through", "reinmax"),
    *("loss", "respacing"),
}
# Where they are 0: what comes with them starts at nothing, so the model is what it was.
MAY_BEGIN = {"caption_maps", "clip_maps"}
MAY_GROW = {"depth"}  # of a DALLE, likewise


@dataclass(frozen=True, kw_only=True)
class NamedClip:
    """A CLIP that training needs beside the model."""

    clip: str | None = option(
        None,
        help="the CLIP that gives the rewards, named as for generate.py, or that reads captions for --clip_maps, a "
        "folder (default: beside --init_from; for rewards as generate.py's)",
    )


def read_start(kind: str, args: argparse.Namespace) -> Checkpoint | None:
    """The model of `kind`, a key of `KINDS`, that --init_from names; None where it names none.

    Raises:
        CheckpointError: the file is missing, broken or of another kind.
        ConfigError: a flag says another model.
    """
    path = from_args(TuningConfig, args).init_from
    if path is None:
        return None
    role = Role(name=f"the {kind} to begin with", kinds=(kind,), flag="--init_from")
    layout = _layout(args) if kind.endswith("unet") else None
    checkpoint = read_as(path, role, flag="--init_from", layout=layout)
    checkpoint.config = trained_on(checkpoint, args, path)
    return checkpoint


def begin(
    kind: str,
    start: Checkpoint | None,
    config: Callable[[], Any],
    args: argparse.Namespace,
    *,
    seed: int,
    device: torch.device,
) -> Any:
    """The network of `kind` to train: that of `start`, else a fresh one, less what --freeze says.

    Args:
        config: gives the configuration of a fresh one.
    Raises:
        ConfigError: --freeze or --train names a part that there is not.
    """
    if start is None:
        with seeded(seed, "weights"):
            model = network_class(kind)(config()).to(device)
    else:
        model = build(start, device=device, dtype=torch.float32).requires_grad_(True)
    from_args(TuningConfig, args).choose(model)
    return model


def trained_on(checkpoint: Checkpoint, args: argparse.Namespace, path: Path) -> Any:
    """The configuration of a model, with those flags that it may be trained on with.

    Raises:
        ConfigError: a flag says another model; which weights would be others.
    """
    given = _with_flags(checkpoint.config, args)
    before, now = _flat(checkpoint.config), _flat(given)
    for name in before:
        grows = (name in MAY_BEGIN and not before[name]) or (name in MAY_GROW and before[name] < now[name])
        if before[name] != now[name] and name not in MAY_CHANGE and not grows:
            misfit = differences(checkpoint.state, blank(checkpoint.kind, given))
            raise ConfigError(
                f"{path} has {name} {before[name]}, and --{name} says {now[name]}; leave the flag out"
                + (f" ({misfit})" if misfit else "")
            )
    return given


def words_of(start: Checkpoint | None, args: argparse.Namespace) -> Tokenizer | None:
    """The text tokenizer beside the model to begin with, unless the flags name another."""
    path = from_args(TuningConfig, args).init_from
    if path is None or start is None or start.tokenizer is None or _words_are_named(args):
        return None
    return read_tokenizer(path, start.tokenizer)


def _words_are_named(args: argparse.Namespace) -> bool:
    return any(getattr(args, name, None) for name in ("bpe_path", "hug", "chinese", "train_bpe"))


def _with_flags(config: Any, args: argparse.Namespace) -> Any:
    """`config`, and what is nested in it, with the flags that were given."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    nested = {name: _with_flags(value, args) for name, value in values.items() if dataclasses.is_dataclass(value)}
    return from_args(type(config), args, base=to_dict(dataclasses.replace(config, **nested)))


def _flat(config: Any) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    inner = [_flat(value) for value in values.values() if dataclasses.is_dataclass(value)]
    plain = {name: value for name, value in values.items() if not dataclasses.is_dataclass(value)}
    return {name: value for part in (*inner, plain) for name, value in part.items()}


def _layout(args: argparse.Namespace) -> Layout:
    unet, process = (
        {field.name: getattr(args, field.name) for field in dataclasses.fields(cls) if hasattr(args, field.name)}
        for cls in (UNetConfig, ProcessConfig)
    )
    return Layout(unet=unet, process=process, small_size=getattr(args, "small_size", None))


def dalle_to_begin_with(args: argparse.Namespace) -> Path | None:
    """The file of --init_from.

    Raises:
        ConfigError: adapters are asked for beside no DALLE, or beside one with adapters, or with --freeze.
    """
    tuning, lora = from_args(TuningConfig, args), from_args(LoraConfig, args)
    path = tuning.init_from and located(tuning.init_from)  # adapters note where their DALLE lies
    if lora.lora_rank and path is None:
        raise ConfigError("--lora_rank trains adapters beside a DALLE; name it with --init_from")
    if lora.lora_rank and (tuning.freeze or tuning.train):
        raise ConfigError("--lora_rank freezes all but the adapters; leave --freeze and --train out")
    if lora.lora_rank and path is not None and is_adapter(path):
        raise ConfigError(f"{path} is a LoRA adapter itself; add it to its DALLE first: dalle3 convert {path} OUT")
    return path


def dalle_task_from(
    path: Path,
    args: argparse.Namespace,
    *,
    flag: str,
    config: DalleTaskConfig,
    seed: int,
    device: torch.device,
    clip_reads: bool = True,
) -> tuple[DalleTask, Checkpoint]:
    """The task that trains the DALLE of a file on, and that file's content.

    Args:
        path: the DALLE, which `flag` names; the image tokenizer and the text tokenizer may have flags of their own.
        config: of the task.
        clip_reads: --clip names what reads captions, and nothing else.
    Raises:
        Dalle3Error: a file is missing, broken or of another kind, or they do not belong together.
    """
    checkpoint, parts = read_as(path, DALLE, flag=flag), from_args(Parts, args)
    if hasattr(args, "train_bpe"):
        raise ConfigError(f"--train_bpe makes a text tokenizer, and {path} has learnt one; leave it out")
    checkpoint.config = trained_on(checkpoint, args, path)
    codec, codec_path = read_codec(parts, checkpoint, path)
    check_codec(checkpoint, codec, dalle_path=path, codec_path=codec_path)
    words = read_words(parts, checkpoint, path)
    check_tokenizer(checkpoint.config, words, dalle_path=path)
    if clip_reads:
        check_clip_is_read(checkpoint.config, args)
    checkpoint.config, reader = with_clip_text(checkpoint.config, args, words, beside=path)
    before, lora = checkpoint.state, from_args(LoraConfig, args)
    with seeded(seed, "weights"):
        checkpoint.state = with_maps(checkpoint.config, deepened(checkpoint.config, before)) | reader
    if lora.lora_rank and checkpoint.state.keys() != before.keys():
        raise ConfigError(f"--lora_rank leaves {path} as it is; leave --depth, --caption_maps and --clip_maps out")
    dalle = cast(Dalle, build(checkpoint, device=device, dtype=torch.float32)).requires_grad_(True)
    built = build_codec(codec, device)
    if lora.lora_rank:
        with seeded(seed, "weights"):
            return DalleLoraTask(dalle, built, words, config, lora=lora.beside(checkpoint, path)), checkpoint
    from_args(TuningConfig, args).choose(dalle)
    return DalleTask(dalle, built, words, config), checkpoint


def new_dalle(
    config: DalleConfig, args: argparse.Namespace, words: Tokenizer, *, seed: int, device: torch.device
) -> Dalle:
    """A fresh DALLE of `config`, less what --freeze says, with the CLIP that reads for its --clip_maps.

    Raises:
        Dalle3Error: as `check_clip_is_read`, `with_clip_text` and `begin`.
    """
    check_clip_is_read(config, args)
    config, reader = with_clip_text(config, args, words, beside=None)
    dalle = begin("dalle", None, lambda: config, args, seed=seed, device=device)
    dalle.load_state_dict(reader, strict=False)
    return dalle


def check_clip_is_read(config: DalleConfig, args: argparse.Namespace) -> None:
    """Raises ConfigError where --clip names a CLIP that a DALLE of `config` has no use for."""
    if from_args(NamedClip, args).clip is None:
        return
    if config.clip_text is not None:
        raise ConfigError("this DALLE has the CLIP that reads its captions, and keeps it; leave --clip out")
    if not config.clip_maps:
        raise ConfigError("--clip names what reads captions for --clip_maps, and this DALLE has none; ask for some")


def with_clip_text(
    config: DalleConfig, args: argparse.Namespace, words: Tokenizer, *, beside: Path | None
) -> tuple[DalleConfig, dict[str, Tensor]]:
    """`config` with the text half of the CLIP that --clip names where --clip_maps are new, and that half's weights.

    Args:
        words: the DALLE's text tokenizer, whose ids the CLIP reads.
        beside: the DALLE, in whose folder a CLIP may lie.
    Raises:
        Dalle3Error: there is no CLIP, or it reads other words, or fewer.
    """
    if not config.clip_maps or config.clip_text is not None:
        return config, {}
    named = from_args(NamedClip, args).clip
    path = located(Path(named)) if named else beside and beside / CLIP_FOLDER
    if path is None or not (named or path.exists()):
        raise ConfigError(f"clip_maps is {config.clip_maps}, and no CLIP reads captions; name one with --clip")
    clip = read_as(path, Role(name="a CLIP", kinds=("clip",), flag="--clip"), flag="--clip")
    sizes, weights = text_half(clip.config, clip.state)
    own = read_tokenizer(path, clip.tokenizer) if clip.tokenizer else words
    if vocabulary(own) != vocabulary(words):
        raise ConfigError(f"--clip {path} reads other words than the DALLE; train one with the DALLE's text tokenizer")
    if sizes.context_length < config.text_seq_len:
        raise ConfigError(
            f"--clip {path} reads {sizes.context_length} tokens and the DALLE {config.text_seq_len}; "
            "take a CLIP that reads as many"
        )
    return dataclasses.replace(config, clip_text=sizes), {
        f"clip_maps.reader.{name}": tensor.float() for name, tensor in weights.items()
    }


def described(args: argparse.Namespace, task: Task) -> dict[str, Any]:
    """What config.json says of the parts that train, which a continued run may not change."""
    if isinstance(task, DalleLoraTask):
        said = to_dict(task.lora)
        return {"tuning": {name: said[name] for name in ("rank", "alpha", "dropout", "targets", "base_sha256")}}
    tuning = from_args(TuningConfig, args)
    chosen = {"freeze": list(tuning.freeze), "train": list(tuning.train)}
    return {"tuning": chosen} if any(chosen.values()) else {}


def write_merged(args: argparse.Namespace, task: Task, *, checkpoint: Path, run: Path) -> Path | None:
    """The folder of the DALLE with the adapters of a run's `checkpoint` added, where --lora_merge asks for it."""
    if not (isinstance(task, DalleLoraTask) and from_args(LoraConfig, args).lora_merge):
        return None
    whole, folder = joined(checkpoint, base_path=Path(task.lora.base_path)), run / MERGED
    whole.codec = task.codec_checkpoint  # so that the folder alone can draw
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier part of the run; its adapters are kept
    save_checkpoint(whole, folder, tokenizer=task.tokenizer)
    return folder
