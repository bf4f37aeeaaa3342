"""Tiny tasks on tiny data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from dalle3.data.base import BrokenSampleError, Sample
from dalle3.data.loader import Stream
from dalle3.data.transforms import Crop, CropConfig, to_tensor
from dalle3.models.clip import Clip, ClipConfig
from dalle3.models.clip_text import text_half
from dalle3.models.dalle import Dalle, DalleConfig
from dalle3.models.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle3.runtime import DTYPES
from dalle3.sampling import Recommended
from dalle3.tokenizers.base import tokenize
from dalle3.tokenizers.huggingface import HuggingFace, train_bpe
from dalle3.train.loop import LoopConfig, Outcome, train
from dalle3.train.optim import OptimConfig
from dalle3.train.parallel import SingleDevice
from dalle3.train.run import RunFolder
from dalle3.train.seeds import seeded
from dalle3.train.task import Task
from dalle3.train.tasks.clip import ClipTask, ClipTaskConfig
from dalle3.train.tasks.dalle import DalleLoraTask, DalleTask, DalleTaskConfig
from dalle3.train.tasks.maps import MapsTask
from dalle3.train.tasks.reward import Recognition, RewardConfig, RewardTask
from dalle3.train.tasks.vae import AutoencoderTask, DecoderTask, VaeTask, VaeTaskConfig
from dalle3.train.tuning import LoraConfig, TuningConfig
from tests.train.denoisers import diffusion_task, upsampler_task
from tests.train.vqgans import gumbel_task, vqgan_task

COLORS = ("red", "green", "blue", "white", "black")


class Squares:
    """Twenty pictures of one colour each; the third is broken."""

    skipped: list[str] = []  # noqa: RUF012

    def __len__(self) -> int:
        return 20

    def name(self, index: int) -> str:
        return f"square {index}"

    def load(self, index: int) -> Sample[Image.Image]:
        if index == 2:
            raise BrokenSampleError("square 2: broken")
        color = COLORS[index % len(COLORS)]
        return Sample(content=Image.new("RGB", (10, 10), color), captions=(color, f"a {color} square"))


def tokenizer() -> HuggingFace:
    return train_bpe([f"a {color} square" for color in COLORS], 64)


def vae() -> DiscreteVAE:
    config = DiscreteVAEConfig(image_size=8, num_tokens=8, codebook_dim=8, num_layers=2, hidden_dim=8)
    with seeded(0, "vae"):
        return DiscreteVAE(config)


def examples() -> list[torch.Tensor]:
    return [to_tensor(Squares().load(index).content.resize((8, 8)))[None] for index in (0, 1, 3, 4)]


def kmeans_task(step: int = 2) -> VaeTask:
    """A discrete VAE that has no codes until `step`."""
    return VaeTask(vae(), VaeTaskConfig(kmeans_step=step), examples=examples)


def dalle_task() -> DalleTask:
    words = tokenizer()
    config = DalleConfig(
        num_text_tokens=words.vocab_size,
        text_seq_len=6,
        num_image_tokens=8,
        image_grid=2,
        dim=16,
        depth=1,
        heads=2,
        dim_head=8,
        attn_dropout=0.1,  # so that resuming must get the dropped positions right too
    )
    with seeded(0, "dalle"):
        return DalleTask(Dalle(config), vae(), words, DalleTaskConfig(caption_dropout=0.3))


def reading_task() -> DalleTask:
    """The DALLE of `dalle_task` with maps of what the CLIP of `clip_task` reads, which alone tell some captions."""
    base, clip = dalle_task(), clip_task().model
    assert isinstance(clip, Clip)
    half, weights = text_half(clip.config, clip.state_dict())
    config = dataclasses.replace(base.dalle.config, clip_maps=2, clip_text=half)
    with seeded(0, "reading"):
        dalle = Dalle(config)
        dalle.load_state_dict({f"clip_maps.reader.{name}": tensor for name, tensor in weights.items()}, strict=False)
    return DalleTask(dalle, vae(), base.tokenizer, DalleTaskConfig(caption_dropout=0.3, words_dropout=0.5))


def lora_task() -> DalleLoraTask:
    """Adapters, with dropout, beside the DALLE of `dalle_task`."""
    plain = dalle_task()
    base = plain.checkpoint(plain.model.state_dict())
    config = LoraConfig(lora_rank=4, lora_dropout=0.1).beside(base, Path("base"))
    with seeded(0, "lora"):
        return DalleLoraTask(plain.dalle, vae(), plain.tokenizer, DalleTaskConfig(caption_dropout=0.3), lora=config)


def frozen_task() -> DalleTask:
    """A DALLE of which embeddings and feed-forward stay as they are."""
    task = dalle_task()
    TuningConfig(freeze=("*_emb", "transformer.layers.0.1")).choose(task.model)
    return task


def clip_task() -> ClipTask:
    words = tokenizer()
    config = ClipConfig(
        embed_dim=8,
        image_size=8,
        patch_size=4,
        vision_width=8,
        vision_layers=1,
        vision_heads=2,
        context_length=6,
        vocab_size=words.vocab_size,
        text_width=8,
        text_layers=1,
        text_heads=2,
        text_end="last_id",
    )
    with seeded(0, "clip"):
        return ClipTask(Clip(config), words, ClipTaskConfig())


def reward_task(*, data_weight: float = 0.5, captions: Path | None = None, **how: float) -> RewardTask:
    """The DALLE of `dalle_task`, rewarded for what the CLIP of `clip_task` sees."""
    base, clip = dalle_task(), clip_task().model
    assert isinstance(clip, Clip)
    ids = partial(tokenize, base.tokenizer, length=6, truncate=True)
    rewards = RewardConfig(group_size=3, among=4, data_weight=data_weight, captions=captions)
    recognition = Recognition(clip, ids, [f"a {color} square" for color in COLORS])
    return RewardTask(base, recognition, rewards, draws=Recommended(**{"cond_scale": 2.0, "top_p": 0.9, **how}))


TASKS: dict[str, Callable[[], Task]] = {
    "vae": lambda: VaeTask(vae(), VaeTaskConfig()),
    "autoencoder": lambda: AutoencoderTask(vae()),
    "decoder": lambda: DecoderTask(vae()),
    "dalle": dalle_task,
    "reading": reading_task,
    "maps": lambda: MapsTask(reading_task()),
    "lora": lora_task,
    "frozen": frozen_task,
    "clip": clip_task,
    "reward": reward_task,
    "diffusion": diffusion_task,
    "upsampler": upsampler_task,
    "vqgan": vqgan_task,
    "gumbel_vq": gumbel_task,
}


def fit(task: Task, folder: Path, *, resume: str = "never", loop: LoopConfig, optim: OptimConfig) -> Outcome:
    """Trains on the squares."""
    run = RunFolder(folder)
    start = run.begin({"task": type(task).__name__, "seed": loop.seed}, resume=resume)
    stream = Stream(Squares(), Crop(8, CropConfig()), seed=loop.seed)
    parallel = SingleDevice(torch.device("cpu"), dtype=DTYPES[loop.dtype])
    return train(task, stream, loop, optim, run=run, start=start, parallel=parallel)
