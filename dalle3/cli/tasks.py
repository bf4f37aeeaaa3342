"""What `dalle3 train` trains: of each model the task and its data, made from flags and files."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dalle3.checkpoint import Checkpoint, build_codec
from dalle3.cli import finetune
from dalle3.cli.finetune import NamedClip, begin
from dalle3.config import from_args, option, to_dict
from dalle3.convert.lpips import read_lpips
from dalle3.convert.roles import CODEC, read_as
from dalle3.data.base import BrokenSampleError, Source, captions_of
from dalle3.data.codes import CodeShards
from dalle3.data.loader import Stream, collate
from dalle3.data.open import open_pictures
from dalle3.data.transforms import Crop, CropConfig, keep
from dalle3.errors import ConfigError
from dalle3.log import note
from dalle3.models.clip import ClipConfig
from dalle3.models.dalle import DalleConfig
from dalle3.models.decoder import DEFAULT_RESPACING, DecoderConfig, UpsamplerConfig
from dalle3.models.discrete_vae import DiscreteVAEConfig
from dalle3.models.discriminator import DiscriminatorConfig, PatchDiscriminator
from dalle3.models.vqgan import VQGAN, GumbelVQ, GumbelVQConfig, VQGANConfig
from dalle3.rerank import load_clip, load_default_clip
from dalle3.runtime import launched
from dalle3.sampling import Recommended
from dalle3.tokenizers.base import Tokenizer
from dalle3.tokenizers.huggingface import train_bpe
from dalle3.tokenizers.load import describe, load_tokenizer
from dalle3.train.launch import LaunchConfig
from dalle3.train.seeds import seeded
from dalle3.train.task import Task
from dalle3.train.tasks.clip import ClipTask, ClipTaskConfig
from dalle3.train.tasks.dalle import DalleTask, DalleTaskConfig
from dalle3.train.tasks.denoising import PREVIEWED, DenoisingConfig
from dalle3.train.tasks.diffusion import DiffusionTask, DiffusionTaskConfig
from dalle3.train.tasks.maps import MapsTask
from dalle3.train.tasks.reward import Recognition, RewardConfig, RewardTask, check_draws
from dalle3.train.tasks.upsampler import UpsamplerTask
from dalle3.train.tasks.vae import VaeTask, VaeTaskConfig
from dalle3.train.tasks.vqgan import AdversarialConfig, GumbelTaskConfig, VqganTask, VqganTaskConfig
from diffusion.process import ProcessConfig
from diffusion.unet import UNetConfig

CAPTIONS_FOR_BPE = 100_000
PICTURES_FOR_CODEBOOK = 400

Made = tuple[Task, Stream, dict[str, Any]]  # the task, its data, and what config.json says of them


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Which pictures, and where the run is kept."""

    image_text_folder: str = option(
        help="a folder of pictures with .txt beside them, a .jsonl, tars like 'data/{00..09}.tar' "
        "or 'https://host/{00..09}.tar', or a folder of codes"
    )
    wds: str = option("", help="of tars: the suffixes of picture and caption, as in --wds img,cap")
    out: Path = option(Path("runs/run"), help="folder of the run")
    resume: str = option("never", help="auto continues the run in --out where there is one; or a checkpoint's folder")


@dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """The text tokenizer."""

    bpe_path: Path | None = option(None, help="a youtokentome model, or with --hug a tokenizers JSON")
    hug: bool = option(False, help="--bpe_path is a JSON of Hugging Face's tokenizers")
    chinese: bool = option(False, help="bert-base-chinese; --bpe_path may name its folder")
    train_bpe: int | None = option(None, help="learn a BPE of so many tokens from the captions instead")


@dataclass(frozen=True, kw_only=True)
class VaePath:
    """The image tokenizer whose codes are read."""

    vae_path: Path | None = option(
        None,
        help="the image tokenizer, where --init_from has none: a folder, a vae.pt, a .ckpt, OpenAI's pickles",
    )


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Pictures to look at while a diffusion model trains."""

    held_out: str = option("", help="a folder of pictures that are not trained on, shown in samples/ and measured")


@dataclass(frozen=True, kw_only=True)
class SmallSize:
    """What an upsampler enlarges."""

    small_size: int = option(64, help="pixels a side of the pictures it enlarges to --image_size")


@dataclass(frozen=True, kw_only=True)
class Respacing:
    """How many steps a diffusion model is meant to draw in."""

    respacing: str = option(
        DEFAULT_RESPACING,
        help="the steps it takes where none are asked for, which --schedule_sampler visited trains on: angle3, 25, ...",
    )


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What a decoder that sees the picture of its codes (--low_res) makes of it."""

    spread: float | None = option(
        None,
        help="with --low_res and --prediction v: how far pictures are from those of their codes, as a deviation in "
        "-1..1, about 0.1; only what those lack is learnt then (default: everything is)",
    )


def make_vae(args: argparse.Namespace, place: RunConfig, device: torch.device, seed: int) -> Made:
    """The task, its data and what config.json says of them."""
    start, losses = finetune.read_start("discrete_vae", args), from_args(VaeTaskConfig, args)
    model = begin("discrete_vae", start, lambda: from_args(DiscreteVAEConfig, args), args, seed=seed, device=device)
    config = model.config
    if losses.kmeans_step is not None and from_args(LaunchConfig, args).deepspeed:
        raise ConfigError("kmeans_step sets weights of which DeepSpeed has copies; train without --deepspeed")
    source = open_pictures(place.image_text_folder, columns=place.wds, needs_captions=False)
    stream = Stream(source, Crop(config.image_size, from_args(CropConfig, args)), seed=seed)

    def examples() -> list[torch.Tensor]:
        return [stream[position].content[None] for position in range(PICTURES_FOR_CODEBOOK)]

    task = VaeTask(model, losses, examples=examples)
    return task, stream, {"model": to_dict(config)}


def make_vqgan(args: argparse.Namespace, place: RunConfig, device: torch.device, seed: int) -> Made:
    """The task, its data and what config.json says of them."""
    start = finetune.read_start("vqgan", args)
    model = begin("vqgan", start, lambda: from_args(VQGANConfig, args), args, seed=seed, device=device)
    return _adversarial(model, from_args(VqganTaskConfig, args), args, place, seed)


def make_gumbel_vq(args: argparse.Namespace, place: RunConfig, device: torch.device, seed: int) -> Made:
    """The task, its data and what config.json says of them."""
    start = finetune.read_start("gumbel_vq", args)
    model = begin("gumbel_vq", start, lambda: from_args(GumbelVQConfig, args), args, seed=seed, device=device)
    return _adversarial(model, from_args(GumbelTaskConfig, args), args, place, seed)


def make_clip(args: argparse.Namespace, place: RunConfig, device: torch.device, seed: int) -> Made:
    """The task, its data and what config.json says of them."""
    source = open_pictures(place.image_text_folder, columns=place.wds)
    start = finetune.read_start("clip", args)
    words = finetune.words_of(start, args) or read_or_train_words(from_args(WordsConfig, args), source)
    # captions end at their last id, but for CLIP's own tokens, which have an end of their own
    derived = {"vocab_size": words.vocab_size, "text_end": "highest_id" if words.kind == "clip_bpe" else "last_id"}
    model = begin("clip", start, lambda: from_args(ClipConfig, args, base=derived), args, seed=seed, device=device)
    config = model.config
    if config.vocab_size < words.vocab_size:
        raise ConfigError(f"vocab_size is {config.vocab_size}, but the text tokenizer has {words.vocab_size} entries")
    task = ClipTask(model, words, from_args(ClipTaskConfig, args))
    stream = Stream(source, Crop(config.image_size, from_args(CropConfig, args)), seed=seed)
    return task, stream, {"model": to_dict(config), "tokenizer": describe(words)}


def make_dalle(args: argparse.Namespace, place: RunConfig, device: torch.device, seed: int) -> Made:
    """The task, its data and what config.json says of them."""
    source, crop = open_for_dalle(place), from_args(CropConfig, args)
    if path := finetune.dalle_to_begin_with(args):
        given = {"config": from_args(DalleTaskConfig, args), "seed": seed, "device": device}
        return finish_dalle(finetune.dalle_task_from(path, args, flag="--init_from", **given)[0], source, crop, seed)
    codec = build_codec(_codec(args, None), device)
    words = read_or_train_words(from_args(WordsConfig, args), source)
    derived = {"num_text_tokens": words.vocab_size, "num_image_tokens": codec.num_tokens}
    dalle = finetune.new_dalle(from_args(DalleConfig, args, base=derived), args, words, seed=seed, device=device)
    return finish_dalle(DalleTask(dalle, codec, words, from_args(DalleTaskConfig, args)), source, crop, seed)


def make_maps(args: argparse.Namespace, place: RunConfig, device: torch.device, seed: int) -> Made:
    """The task, its data and what config.json says of them."""
    path = finetune.dalle_to_begin_with(args)
    if path is None:
        raise ConfigError("maps are laid for a DALLE that is there; name it with --init_from")
    source = open_for_dalle(place)
    given = {"config": from_args(DalleTaskConfig, args), "seed": seed, "device": device}
    base, _ = finetune.dalle_task_from(path, args, flag="--init_from", **given)
    return finish_dalle(MapsTask(base), source, from_args(CropConfig, args), seed)


def make_reward(args: argparse.Namespace, place: RunConfig, device: torch.device, seed: int) -> Made:
    """The task, its data and what config.json says of them."""
    path, rewards = finetune.dalle_to_begin_with(args), from_args(RewardConfig, args)
    if path is None:
        raise ConfigError("rewards are for pictures that a DALLE draws already; name it with --init_from")
    if from_args(LaunchConfig, args).zero.divides() == 3:
        raise ConfigError("zero_stage is 3, which divides the weights that pictures are drawn with; take 2")
    source = open_for_dalle(place)
    given = {"config": from_args(DalleTaskConfig, args), "seed": seed, "device": device}
    base, checkpoint = finetune.dalle_task_from(path, args, flag="--init_from", clip_reads=False, **given)
    own = dataclasses.replace(checkpoint.recommended, best_of=None)  # there is no CLIP beside a checkpoint of a run
    draws = from_args(Recommended, args).instead_of(own)
    check_draws(draws)
    name, beside = from_args(NamedClip, args).clip, {"device": device, "tokenizer": base.tokenizer}
    clip, ids = load_clip(name, **beside) if name else load_default_clip(path, **beside)
    others = list(dict.fromkeys(_captions(source, rewards.among)))
    task = RewardTask(base, Recognition(clip, ids, others[: rewards.among]), rewards, draws=draws)
    return finish_dalle(task, source, from_args(CropConfig, args), seed)


def open_for_dalle(place: RunConfig) -> Source:
    """The captioned pictures, or the codes of pictures, that a DALLE learns from."""
    codes = sorted(Path(place.image_text_folder).glob("codes-*.safetensors"))
    return CodeShards(codes) if codes else open_pictures(place.image_text_folder, columns=place.wds)


def finish_dalle(task: DalleTask, source: Source, crop: CropConfig, seed: int) -> Made:
    """The task with its data and what config.json says of them.

    Raises:
        ConfigError: codes of another image tokenizer.
    """
    config = task.dalle.config
    cut: Any = keep
    if isinstance(source, CodeShards):
        task.check_codes_of(source.codec)
    else:
        cut = Crop(config.image_grid * task.codec.factor, crop)
    stream = Stream(source, cut, seed=seed)
    return task, stream, {"model": to_dict(config), "tokenizer": describe(task.tokenizer)}


def make_diffusion(args: argparse.Namespace, place: RunConfig, device: torch.device, seed: int) -> Made:
    """The task, its data and what config.json says of them."""
    start, task_config = finetune.read_start("unet", args), from_args(DiffusionTaskConfig, args)
    codec = build_codec(_codec(args, start), device)
    derived = {"emb_input_dims": codec.embed_dim, "null_embedding": task_config.emb_dropout > 0}
    model = begin("unet", start, lambda: decoder_config(args, derived), args, seed=seed, device=device)
    stream, held_out = _pictures(args, place, model.settings, seed)
    return DiffusionTask(model, codec, task_config, held_out=held_out), stream, _described(model.settings)


def decoder_config(args: argparse.Namespace, derived: dict[str, Any]) -> DecoderConfig:
    """The decoder that the flags describe."""
    return DecoderConfig(**_network(args, derived), spread=from_args(Spread, args).spread)


def make_upsampler(args: argparse.Namespace, place: RunConfig, device: torch.device, seed: int) -> Made:
    """The task, its data and what config.json says of them."""

    def config() -> UpsamplerConfig:
        return UpsamplerConfig(**_network(args, {}), small_size=from_args(SmallSize, args).small_size)

    model = begin("super_res_unet", finetune.read_start("super_res_unet", args), config, args, seed=seed, device=device)
    stream, held_out = _pictures(args, place, model.settings, seed)
    task = UpsamplerTask(model, from_args(DenoisingConfig, args), held_out=held_out)
    return task, stream, _described(model.settings)


def _codec(args: argparse.Namespace, start: Checkpoint | None) -> Checkpoint:
    """The image tokenizer that the flag names, else that of the model to begin with."""
    path = from_args(VaePath, args).vae_path
    if path is not None:
        return read_as(path, CODEC, flag="--vae_path")
    if start is None or start.codec is None:
        raise ConfigError("the model needs an image tokenizer, whose codes it learns; name it with --vae_path")
    return start.codec


def _adversarial(
    model: VQGAN | GumbelVQ, config: AdversarialConfig, args: argparse.Namespace, place: RunConfig, seed: int
) -> Made:
    """The task of an image tokenizer with a discriminator of its own, its data and what config.json says of them."""
    if from_args(LaunchConfig, args).zero.divides() == 3:
        raise ConfigError("zero_stage is 3, which divides weights that the discriminator's loss needs whole; take 2")
    if not model.decoder.conv_out.weight.requires_grad:
        raise ConfigError("decoder.conv_out must train: the discriminator is weighed there; leave it out of --freeze")
    device, discriminator = model.codebook.device, from_args(DiscriminatorConfig, args)
    perceptual = read_lpips(config.lpips_path).to(device) if config.lpips_path else None
    if perceptual is None and config.perceptual_weight and launched()[1] == 0:
        note("no --lpips_path, so no perceptual loss: the pictures are compared pixel by pixel alone")
    with seeded(seed, "weights"):
        adversary = PatchDiscriminator(discriminator).to(device)
    source = open_pictures(place.image_text_folder, columns=place.wds, needs_captions=False)
    stream = Stream(source, Crop(model.image_size, from_args(CropConfig, args)), seed=seed)
    described = {"model": {**to_dict(model.config), **to_dict(discriminator)}}
    return VqganTask(model, adversary, config, perceptual=perceptual), stream, described


def _network(args: argparse.Namespace, derived: dict[str, Any]) -> dict[str, Any]:
    """Network, process and steps of a diffusion model as the flags have them."""
    process = from_args(ProcessConfig, args)
    base = {"image_size": 256, "learn_sigma": process.learned_variance, **derived}
    unet, respacing = from_args(UNetConfig, args, base=base), from_args(Respacing, args).respacing
    return {"unet": unet, "process": process, "respacing": respacing}


def _described(config: DecoderConfig) -> dict[str, Any]:
    """What config.json says of a diffusion model, on one level, so that a change of it can be named."""
    own = {"small_size": config.small_size} if isinstance(config, UpsamplerConfig) else {"spread": config.spread}
    return {"model": {**to_dict(config.unet), **to_dict(config.process), **own}}


def _pictures(
    args: argparse.Namespace, place: RunConfig, config: DecoderConfig, seed: int
) -> tuple[Stream, torch.Tensor | None]:
    """The pictures to train on, and those held out for previews."""
    size, crop = config.unet.image_size, from_args(CropConfig, args)
    source = open_pictures(place.image_text_folder, columns=place.wds, needs_captions=False)
    held_out = from_args(HeldOut, args).held_out
    if not held_out:
        return Stream(source, Crop(size, crop), seed=seed), None
    whole = Crop(size, CropConfig(random_resize_crop_lower_ratio=1.0))
    others = Stream(open_pictures(held_out, columns=place.wds, needs_captions=False), whole, seed=0)
    shown = collate([others[position] for position in range(min(PREVIEWED, len(others.source)))])
    return Stream(source, Crop(size, crop), seed=seed), shown.content


def read_or_train_words(config: WordsConfig, source: Source) -> Tokenizer:
    """The text tokenizer that the flags name, or one learnt from the captions."""
    if config.train_bpe is None:
        return load_tokenizer(config.bpe_path, hug=config.hug, chinese=config.chinese)
    if config.bpe_path or config.hug or config.chinese:
        raise ConfigError("--train_bpe makes a tokenizer and the other text flags name one; leave one out")
    return train_bpe(_captions(source, CAPTIONS_FOR_BPE), config.train_bpe)


def _captions(source: Source, number: int) -> Iterator[str]:
    """The captions of about `number` samples from all over the data."""
    for index in range(0, len(source), max(1, len(source) // number)):
        with contextlib.suppress(BrokenSampleError):  # named when training comes to it
            yield from captions_of(source, index)
