"""Trains the smallest complete model there is, in under two minutes on two cores: `python -m recipes.shapes.quick OUT`.

One coloured shape on white, 32 pixels, 8x8 codes. OUT becomes a model folder for `generate.py`: the DALLE with its
text tokenizer, its image tokenizer in `codec/` and a CLIP that ranks in `clip/`. Everything goes through the training
loop that trains large models; what is short here is the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from dalle3.checkpoint import read_folder, write_checkpoint
from dalle3.data.codes import CodeShards
from dalle3.data.loader import Stream
from dalle3.data.transforms import Crop, CropConfig, keep
from dalle3.files import whole_folder
from dalle3.models.clip import Clip, ClipConfig
from dalle3.models.dalle import Dalle, DalleConfig
from dalle3.models.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle3.runtime import generator
from dalle3.sampling import Recommended
from dalle3.tokenizers.load import read_tokenizer
from dalle3.train.codebook import set_codebook
from dalle3.train.encode import encode
from dalle3.train.loop import LoopConfig
from dalle3.train.optim import OptimConfig
from dalle3.train.seeds import seeded
from dalle3.train.task import Task, to_unit
from dalle3.train.tasks.clip import ClipTask, ClipTaskConfig
from dalle3.train.tasks.dalle import DalleTask, DalleTaskConfig
from dalle3.train.tasks.vae import AutoencoderTask, DecoderTask
from recipes.shapes.fit import fit, text_tokenizer
from recipes.shapes.source import Scenes

SIZE, CODES, FEATURES = 32, 256, 32
MIDDLE = 0.64  # of a scene is shown: all of one object, and less of the background around it
CROP = Crop(SIZE, CropConfig(random_resize_crop_lower_ratio=1.0))
TEXT_LENGTH = 12
NUM_SCENES = 6000
RECOMMENDED = Recommended(top_p=0.85, example="a large red circle")


def main() -> None:
    """Trains into the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.shapes.quick", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="OUT", help="the model folder to make")
    make(parser.parse_args().folder)


def make(folder: Path) -> None:
    """Writes the model folder, whole or not at all.

    CLIP needs nothing of the others, so it trains in a second process; each computes on one core, which at these
    sizes is faster than both on two.

    Raises:
        OutputError: the folder exists and is not empty, or cannot be written.
    """
    torch.set_num_threads(1)
    spawn = multiprocessing.get_context("spawn")
    with whole_folder(folder) as partial, tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        with ProcessPoolExecutor(1, mp_context=spawn) as helper:
            clip = helper.submit(train_clip, work / "clip")
            vae = train_codec(work / "codec")
            dalle = train_dalle(vae, work / "dalle")
            write_dalle(dalle, partial)
            shutil.copytree(clip.result(), partial / "clip", ignore=shutil.ignore_patterns("train"))


def write_dalle(checkpoint: Path, folder: Path) -> None:
    """Writes a DALLE with all that draws, and how it draws best, into a folder that exists."""
    found = read_folder(checkpoint)
    assert found.tokenizer is not None, "training puts it there"
    tokenizer = read_tokenizer(checkpoint, found.tokenizer)
    write_checkpoint(dataclasses.replace(found, recommended=RECOMMENDED), folder, tokenizer=tokenizer)


def train_codec(work: Path) -> DiscreteVAE:
    """A discrete VAE of 4 x 4 pixels a code: autoencoder, then k-means for a codebook, then the decoder once more."""
    config = DiscreteVAEConfig(
        image_size=SIZE, num_layers=2, num_tokens=CODES, hidden_dim=FEATURES, codebook_dim=FEATURES
    )
    with seeded(0, "vae"):
        vae = DiscreteVAE(config)
    stream = Stream(_scenes(), CROP, seed=0)
    _run(AutoencoderTask(vae), stream, work / "autoencoder", steps=1800, batch_size=8, learning_rate=6e-3)
    pictures = torch.stack([stream[position].content for position in range(1500)])
    set_codebook(vae, to_unit(pictures, torch.device("cpu")).split(100), rng=generator(0, "codebook"))
    _run(DecoderTask(vae), stream, work / "decoder", steps=300, batch_size=8, learning_rate=3e-3)
    return vae.eval()


def train_dalle(vae: DiscreteVAE, work: Path) -> Path:
    """The checkpoint of a DALLE that learnt the codes of the scenes, once encoded."""
    tokenizer = text_tokenizer(_scenes())
    config = DalleConfig(
        num_text_tokens=tokenizer.vocab_size,
        text_seq_len=TEXT_LENGTH,
        num_image_tokens=CODES,
        image_grid=SIZE // vae.factor,
        dim=128,
        depth=2,
        heads=2,
        dim_head=32,
    )
    with seeded(0, "dalle"):
        task = DalleTask(Dalle(config), vae, tokenizer, DalleTaskConfig())
    shards = encode(_scenes(), CROP, vae, work, seed=0)
    stream = Stream(CodeShards(shards), keep, seed=0)
    return _run(task, stream, work / "run", steps=1600, batch_size=16, learning_rate=4e-3)


def train_clip(work: Path) -> Path:
    """The checkpoint of a CLIP that tells the scenes apart."""
    torch.set_num_threads(1)
    tokenizer = text_tokenizer(_scenes())
    config = ClipConfig(
        embed_dim=64,
        image_size=SIZE,
        patch_size=8,
        vision_width=64,
        vision_layers=2,
        vision_heads=2,
        context_length=TEXT_LENGTH,
        vocab_size=tokenizer.vocab_size,
        text_width=64,
        text_layers=1,
        text_heads=2,
        text_end="last_id",
    )
    with seeded(0, "clip"):
        task = ClipTask(Clip(config), tokenizer, ClipTaskConfig())
    return _run(task, Stream(_scenes(), CROP, seed=0), work, steps=300, batch_size=64, learning_rate=2e-3)


def _scenes() -> Scenes:
    return Scenes(NUM_SCENES, size=SIZE, kind="one", background="white", middle=MIDDLE)


def _run(task: Task, stream: Stream, folder: Path, *, steps: int, batch_size: int, learning_rate: float) -> Path:
    loop = LoopConfig(
        steps=steps, batch_size=batch_size, log_every_n_steps=100, save_every_n_steps=steps, sample_every_n_steps=0
    )
    optim = OptimConfig(
        learning_rate=learning_rate, betas=(0.9, 0.95), warmup_steps=20, lr_schedule="cosine", clip_grad_norm=1.0
    )
    return fit(task, stream, folder, loop=loop, optim=optim, resume="never")


if __name__ == "__main__":
    main()
