"""Trains a small diffusion decoder and all that judges it: `python -m recipes.shapes.decoder OUT`.

One coloured shape on any background. The image tokenizer reads 32 pixels as 16x16 codes; the decoder draws 64 pixels
from them, starting from the tokenizer's own picture. OUT gets `codec/`, `decoder/`, and two CLIPs that differ in their
seed: `clip/` steers, `judge/` gives the scores, so that no CLIP marks its own work. What is there already is not made
again, and an interrupted part goes on where it was.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from dalle3.checkpoint import build, is_checkpoint, read_folder
from dalle3.data.loader import Stream, collate
from dalle3.data.transforms import Crop, CropConfig
from dalle3.files import whole_folder
from dalle3.models.clip import Clip, ClipConfig
from dalle3.models.decoder import DecoderConfig, DiffusionDecoder
from dalle3.models.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle3.runtime import generator
from dalle3.train.codebook import set_codebook
from dalle3.train.loop import LoopConfig
from dalle3.train.optim import OptimConfig
from dalle3.train.seeds import seeded
from dalle3.train.task import Task, to_unit
from dalle3.train.tasks.clip import ClipTask, ClipTaskConfig
from dalle3.train.tasks.diffusion import DiffusionTask, DiffusionTaskConfig
from dalle3.train.tasks.vae import AutoencoderTask, DecoderTask
from diffusion.process import ProcessConfig
from diffusion.unet import UNetConfig
from recipes.shapes.fit import fit, text_tokenizer
from recipes.shapes.source import Scenes

SIZE, SMALL = 64, 32  # pixels a side that the decoder draws, and that the image tokenizer reads
MIDDLE = 0.64  # of a scene is shown: all of one object, and less of the background around it
CODES, FEATURES = 512, 32
NUM_SCENES = 20_000
HELD_OUT = "held-out"  # the split that nothing here trains on
RUNS = "runs"


def main() -> None:
    """Trains into the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.shapes.decoder", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="OUT", help="the folder to fill")
    make(parser.parse_args().folder)


def make(folder: Path) -> None:
    """Makes whatever of `codec/`, `clip/`, `judge/` and `decoder/` is not in the folder yet."""
    torch.set_num_threads(1)
    runs = folder / RUNS
    parts = {
        "codec": lambda: train_codec(runs / "codec"),
        "clip": lambda: train_clip(runs / "clip", seed=0),
        "judge": lambda: train_clip(runs / "judge", seed=1),
        "decoder": lambda: train_decoder(runs / "decoder", folder / "codec"),
    }
    for name, trained in parts.items():
        if not is_checkpoint(folder / name):
            with whole_folder(folder / name) as partial:
                shutil.copytree(trained(), partial, ignore=shutil.ignore_patterns("train"), dirs_exist_ok=True)


def scenes(size: int, *, number: int = NUM_SCENES, split: str = "train") -> Scenes:
    """Scenes of one object, on any background."""
    return Scenes(number, size=size, split=split, kind="one", middle=MIDDLE)


def train_codec(run: Path) -> Path:
    """The checkpoint of a discrete VAE: autoencoder, then k-means for a codebook, then the decoder once more."""
    config = DiscreteVAEConfig(
        image_size=SMALL,
        num_layers=1,
        num_tokens=CODES,
        hidden_dim=FEATURES,
        codebook_dim=FEATURES,
        num_resnet_blocks=1,
    )
    with seeded(0, "vae"):
        vae = DiscreteVAE(config)
    stream = _stream(SMALL)
    _train(AutoencoderTask(vae), stream, run / "autoencoder", steps=1000, batch_size=8, learning_rate=3e-3)
    pictures = torch.stack([stream[position].content for position in range(1000)])
    set_codebook(vae, to_unit(pictures, torch.device("cpu")).split(100), rng=generator(0, "codebook"))
    return _train(DecoderTask(vae), stream, run / "vae", steps=1000, batch_size=8, learning_rate=2e-3)


def train_clip(run: Path, *, seed: int) -> Path:
    """The checkpoint of a CLIP that tells the scenes apart."""
    tokenizer = text_tokenizer(scenes(SIZE))
    config = ClipConfig(
        embed_dim=64,
        image_size=SIZE,
        patch_size=8,
        vision_width=96,
        vision_layers=3,
        vision_heads=3,
        context_length=16,
        vocab_size=tokenizer.vocab_size,
        text_width=64,
        text_layers=1,
        text_heads=2,
        text_end="last_id",
    )
    with seeded(seed, "clip"):
        task = ClipTask(Clip(config), tokenizer, ClipTaskConfig())
    return _train(task, _stream(SIZE, seed=seed), run, steps=500, batch_size=64, learning_rate=2e-3)


def train_decoder(run: Path, codec: Path) -> Path:
    """The checkpoint of the decoder of a codec's codes."""
    vae = build(read_folder(codec), device=torch.device("cpu"))
    assert isinstance(vae, DiscreteVAE)
    held_out = Stream(scenes(SIZE, number=4, split=HELD_OUT), _crop(SIZE), seed=0)
    shown = collate([held_out[position] for position in range(4)]).content
    with seeded(0, "weights"):
        model = DiffusionDecoder(decoder_config(vae.embed_dim))
    task = DiffusionTask(model, vae, DiffusionTaskConfig(), held_out=shown)
    return _train(task, _stream(SIZE), run, steps=1000, batch_size=16, learning_rate=1.5e-3, ema_decay=0.995)


def decoder_config(emb_input_dims: int) -> DecoderConfig:
    """A decoder of 1 M parameters: four levels, so that a code becomes 4 pixels."""
    unet = UNetConfig(
        image_size=SIZE,
        num_channels=32,
        channel_mult=(1.0, 1.0, 2.0, 2.0),
        num_res_blocks=1,
        attention_resolutions=(),
        num_heads=4,
        learn_sigma=False,
        emb_input_dims=emb_input_dims,
        emb_output_dims=64,
        null_embedding=True,
        low_res=True,
    )
    process = ProcessConfig(noise_schedule="cosine", prediction="v", variance="fixed_small")
    return DecoderConfig(unet=unet, process=process, respacing="angle3", spread=0.06)


def _crop(size: int) -> Crop:
    return Crop(size, CropConfig(random_resize_crop_lower_ratio=1.0))


def _stream(size: int, *, seed: int = 0) -> Stream:
    return Stream(scenes(size), _crop(size), seed=seed)


def _train(
    task: Task,
    stream: Stream,
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    ema_decay: float = 0.0,
) -> Path:
    loop = LoopConfig(
        steps=steps,
        batch_size=batch_size,
        log_every_n_steps=25,
        save_every_n_steps=100,
        keep_n_checkpoints=2,
        sample_every_n_steps=steps // 4 if ema_decay else 0,
    )
    optim = OptimConfig(
        learning_rate=learning_rate,
        betas=(0.9, 0.99) if ema_decay else (0.9, 0.95),
        warmup_steps=50 if ema_decay else 20,
        lr_schedule="cosine",
        clip_grad_norm=1.0,
        ema_decay=ema_decay,
    )
    return fit(task, stream, folder, loop=loop, optim=optim, resume="auto")


if __name__ == "__main__":
    main()
