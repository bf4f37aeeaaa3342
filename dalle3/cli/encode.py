"""`dalle3 encode`: turns a data set into shards of codes, once, for `train dalle --image_text_folder SHARDS`."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from dalle3.assemble import check_codec
from dalle3.checkpoint import Checkpoint, build, build_codec, fingerprint
from dalle3.config import add_arguments as add_flags
from dalle3.config import from_args, option, to_dict
from dalle3.convert.roles import CODEC, DALLE, read_as
from dalle3.data.codes import Codec
from dalle3.data.open import open_pictures
from dalle3.data.transforms import Crop, CropConfig
from dalle3.errors import ConfigError, DataError
from dalle3.files import whole_file
from dalle3.log import note
from dalle3.models.dalle import Dalle
from dalle3.models.image_tokenizer import ImageTokenizer
from dalle3.runtime import keep_freed_memory, place_among_processes
from dalle3.train.encode import SHARD, codec_of, encode_missing
from dalle3.train.launch import local_device
from dalle3.train.likelier import PRIOR_WEIGHT, LikelierCodes

HELP = "turn a data set into shards of codes, to train a DALLE on"
SETTINGS = "encode.json"


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """What is encoded, by what, and where the codes go."""

    image_text_folder: str = option(help="a folder of pictures with .txt beside them, a .jsonl, or tars")
    wds: str = option("", help="of tars: the suffixes of picture and caption, as in --wds img,cap")
    vae_path: Path = option(help="the image tokenizer: a dalle3 folder, a vae.pt, a taming .ckpt, OpenAI's pickles")
    vqgan_config_path: Path | None = option(None, help="the .yaml of a taming .ckpt")
    out: Path = option(help="folder of the shards; what an interrupted call left there is kept")
    image_grid: int | None = option(None, help="codes along a side of a picture (default: the image tokenizer's)")
    prior: Path | None = option(
        None, help="a DALLE of these codes: of those that say about the same, the likelier ones in its eyes are written"
    )
    prior_weight: float = option(PRIOR_WEIGHT, help="how much the prior's word counts against the image tokenizer's")
    shard_size: int = option(SHARD, help="pictures in a shard")
    seed: int = option(0, help="of random crops")
    device: str = option("auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")

    def __post_init__(self) -> None:
        """Raises ConfigError for shards or pictures without content."""
        for name in ("shard_size", "image_grid"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if not self.prior_weight > 0:
            raise ConfigError(f"prior_weight is {self.prior_weight}; it must be above 0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` the flags."""
    add_flags(parser, EncodeConfig, title="data and image tokenizer")
    add_flags(parser, CropConfig, title="pictures; without flags they are cut at the centre")


def run(args: argparse.Namespace) -> int:
    """Writes the shards that are missing and returns 0; several processes under torchrun divide them.

    Raises:
        Dalle3Error: nothing to encode, or the folder holds codes of other pictures or of another image tokenizer.
    """
    config = from_args(EncodeConfig, args)
    crop = from_args(CropConfig, args, base={"random_resize_crop_lower_ratio": 1.0})
    checkpoint = read_as(config.vae_path, CODEC, flag="--vae_path", config_path=config.vqgan_config_path)
    device = local_device(config.device)
    codec = build_codec(checkpoint, device)
    keep_freed_memory()
    source = open_pictures(config.image_text_folder, columns=config.wds)
    maker = codec_of(codec, grid=config.image_grid or checkpoint_grid(codec))
    prior = _read_prior(config, checkpoint, maker.grid)
    _settle(config, crop, maker, num_samples=len(source), prior=prior)
    encoder = codec
    if prior is not None:
        encoder = LikelierCodes(
            codec, cast(Dalle, build(prior, device=device, dtype=torch.float32)), weight=config.prior_weight
        )
    cut = Crop(maker.grid * codec.factor, crop)
    rank, world = place_among_processes()
    began, total = time.perf_counter(), 0
    shards = encode_missing(
        source,
        cut,
        encoder,
        config.out,
        maker=maker,
        seed=config.seed,
        shard_size=config.shard_size,
        rank=rank,
        world=world,
    )
    for path, number in shards:
        total += number
        note(f"{path}: {number} pictures, {total / (time.perf_counter() - began):.1f} a second")
    note(
        f"done: {config.out} holds the codes of {config.image_text_folder}"
        + (f" ({rank} of {world})" if world > 1 else "")
    )
    return 0


def checkpoint_grid(codec: ImageTokenizer) -> int:
    """The codes along a side of the pictures an image tokenizer was made for."""
    return codec.image_size // codec.factor


def _read_prior(config: EncodeConfig, codec: Checkpoint, grid: int) -> Checkpoint | None:
    """The DALLE that has a say in the codes, if any.

    Raises:
        CheckpointError: it cannot be read, or speaks other codes.
        ConfigError: it draws another grid, or the image tokenizer takes the nearest entry, so there is no choice.
    """
    if config.prior is None:
        return None
    if codec.kind == "vqgan":
        raise ConfigError(
            f"--vae_path {config.vae_path} is a VQGAN, whose codes are the nearest entries, without probabilities "
            "that a --prior could be weighed against; leave --prior out"
        )
    prior = read_as(config.prior, DALLE, flag="--prior")
    check_codec(prior, codec, dalle_path=config.prior, codec_path=config.vae_path)
    if prior.config.image_grid != grid:
        raise ConfigError(
            f"--prior {config.prior} draws {prior.config.image_grid} codes a side and pictures become {grid}; "
            "pass a --image_grid like its own"
        )
    return prior


def _settle(
    config: EncodeConfig, crop: CropConfig, maker: Codec, *, num_samples: int, prior: Checkpoint | None
) -> None:
    """Notes what the folder holds, or compares it with what it held.

    Raises:
        DataError: it was begun otherwise.
    """
    path = config.out / SETTINGS
    now = {
        "image_text_folder": config.image_text_folder,
        "samples": num_samples,
        "shard_size": config.shard_size,
        "seed": config.seed,
        "pictures": to_dict(crop),
        "codec": vars(maker),
    }
    if prior is not None:
        now["prior"] = {"sha256": fingerprint(prior.state), "weight": config.prior_weight}
    if not path.exists():
        with whole_file(path) as partial:
            partial.write_text(json.dumps(now, indent=2) + "\n")
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise DataError(f"{path} is not what `dalle3 encode` writes; name another --out, or remove it first") from None
    changed = [
        f"{name} {before.get(name)}, now {now.get(name)}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise DataError(f"{config.out} was begun with {'; '.join(changed)}; name another --out, or remove it first")
