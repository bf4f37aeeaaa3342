"""`dalle3 train <model>`: trains a model on pictures, with captions where it reads them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dalle3.cli import finetune
from dalle3.cli.finetune import NamedClip
from dalle3.cli.tasks import (
    HeldOut,
    Made,
    Respacing,
    RunConfig,
    SmallSize,
    Spread,
    VaePath,
    WordsConfig,
    make_clip,
    make_dalle,
    make_diffusion,
    make_gumbel_vq,
    make_maps,
    make_reward,
    make_upsampler,
    make_vae,
    make_vqgan,
)
from dalle3.config import add_arguments as add_flags
from dalle3.config import from_args, to_dict
from dalle3.data.transforms import CropConfig
from dalle3.log import note
from dalle3.models.clip import ClipConfig
from dalle3.models.dalle import DalleConfig
from dalle3.models.discrete_vae import DiscreteVAEConfig
from dalle3.models.discriminator import DiscriminatorConfig
from dalle3.models.vqgan import GumbelVQConfig, VQGANConfig
from dalle3.sampling import SamplingChoice
from dalle3.train.launch import LaunchConfig, local_device, meet
from dalle3.train.loop import LoopConfig, train
from dalle3.train.optim import OptimConfig
from dalle3.train.profiler import profile
from dalle3.train.run import Beginning, RunFolder, read_position
from dalle3.train.tasks.clip import ClipTaskConfig
from dalle3.train.tasks.dalle import DalleTaskConfig
from dalle3.train.tasks.denoising import DenoisingConfig
from dalle3.train.tasks.diffusion import DiffusionTaskConfig
from dalle3.train.tasks.reward import RewardConfig
from dalle3.train.tasks.vae import VaeTaskConfig
from dalle3.train.tasks.vqgan import GumbelTaskConfig, VqganTaskConfig
from dalle3.train.trackers import TrackerConfig, open_trackers
from dalle3.train.tuning import LoraConfig, TuningConfig
from diffusion.process import ProcessConfig
from diffusion.unet import UNetConfig

HELP = "train a model on your own pictures"

SHARED = {
    "data and run": RunConfig,
    "loop": LoopConfig,
    "optimizer": OptimConfig,
    "fine-tuning": TuningConfig,
    "pictures": CropConfig,
    "processes": LaunchConfig,
    "trackers": TrackerConfig,
}
ADVERSARY = {"discriminator": DiscriminatorConfig}
DENOISER = {"model": UNetConfig, "process": ProcessConfig, "drawing": Respacing, "previews": HeldOut}
MODELS: dict[str, tuple[str, dict[str, type], Callable[..., Made]]] = {
    "vae": ("DALLE-pytorch's discrete VAE", {"model": DiscreteVAEConfig, "codes": VaeTaskConfig}, make_vae),
    "vqgan": ("taming's VQGAN", {"model": VQGANConfig, **ADVERSARY, "losses": VqganTaskConfig}, make_vqgan),
    "gumbel_vq": (
        "taming's GumbelVQ, the image tokenizer of DALL-3",
        {"model": GumbelVQConfig, **ADVERSARY, "losses": GumbelTaskConfig},
        make_gumbel_vq,
    ),
    "clip": ("a CLIP", {"model": ClipConfig, "captions": ClipTaskConfig, "text": WordsConfig}, make_clip),
    "dalle": (
        "a DALLE on an image tokenizer's codes",
        {
            "model": DalleConfig,
            "captions": DalleTaskConfig,
            "text": WordsConfig,
            "image tokenizer": VaePath,
            "CLIP": NamedClip,
            "adapters": LoraConfig,
        },
        make_dalle,
    ),
    "maps": (
        "of a DALLE, the maps that CLIP's reading of captions lays under its pictures, quickly and before the rest",
        {
            "model": DalleConfig,
            "captions": DalleTaskConfig,
            "CLIP": NamedClip,
            "image tokenizer": VaePath,
        },
        make_maps,
    ),
    "reward": (
        "a DALLE that draws already, by how surely a CLIP knows what it drew",
        {
            "model": DalleConfig,
            "captions": DalleTaskConfig,
            "rewards": RewardConfig,
            "drawing": SamplingChoice,
            "CLIP": NamedClip,
            "image tokenizer": VaePath,
        },
        make_reward,
    ),
    "diffusion": (
        "a diffusion decoder of an image tokenizer's codes",
        {**DENOISER, "conditions": DiffusionTaskConfig, "picture of the codes": Spread, "image tokenizer": VaePath},
        make_diffusion,
    ),
    "upsampler": (
        "an upsampler of pictures",
        {**DENOISER, "steps": DenoisingConfig, "sizes": SmallSize},
        make_upsampler,
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` one sub-command for each model."""
    models = parser.add_subparsers(dest="model", required=True, metavar="model")
    for name, (line, configs, _) in MODELS.items():
        one = models.add_parser(name, help=line, description=line)
        for title, config in {**SHARED, **configs}.items():
            add_flags(one, config, title=title)


def run(args: argparse.Namespace) -> int:
    """Trains and returns 0, also where a signal ended it early."""
    loop, place = from_args(LoopConfig, args), from_args(RunConfig, args)
    made = MODELS[args.model][2](args, place, local_device(loop.device), loop.seed)
    return carry_out(args.model, made, place=place, loop=loop, optim=from_args(OptimConfig, args), args=args)


def carry_out(
    name: str,
    made: Made,
    *,
    place: RunConfig,
    loop: LoopConfig,
    optim: OptimConfig,
    args: argparse.Namespace,
    beginning: Beginning | None = None,
    project: str = "",
) -> int:
    """Trains the task `name` in as many processes as the flags of `LaunchConfig` and the launcher say; returns 0."""
    task, stream, described = made
    folder = RunFolder(place.out)
    described = {**described, **finetune.described(args, task)}
    config = {"task": name, "seed": loop.seed, **described, "loop": to_dict(loop), "run": to_dict(place)}
    parallel = meet(from_args(LaunchConfig, args), loop, optim, device=local_device(loop.device))
    if loop.flops_profiler:
        return profile(task, stream, loop, optim, parallel=parallel)
    start = parallel.first(lambda: folder.begin(config, resume=place.resume))
    parallel.first(lambda: _track(folder, args, config, project=project or f"dalle3_train_{name}", start=start))
    try:
        outcome = train(task, stream, loop, optim, run=folder, start=start or beginning, parallel=parallel)
    finally:
        folder.close()
    done = "done" if outcome.finished else "stopped early; --resume auto continues"
    if parallel.rank == 0:
        note(f"{done}: {outcome.checkpoint} holds the model after {outcome.step} steps")
        if merged := finetune.write_merged(args, task, checkpoint=outcome.checkpoint, run=place.out):
            note(f"{merged} holds it with the DALLE it belongs to")
    parallel.finish()
    return 0


def _track(
    folder: RunFolder, args: argparse.Namespace, config: dict[str, Any], *, project: str, start: Path | None
) -> None:
    """Gives the run the trackers of the flags."""
    done = read_position(start).step if start is not None and start.resolve().parent == folder.path.resolve() else 0
    asked = from_args(TrackerConfig, args)
    folder.trackers = open_trackers(asked, folder.path, project=project, described=config, done=done)
