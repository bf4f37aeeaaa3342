"""What the models of shapes that are trained from Python share: their text tokenizer, and a run on this CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from dalle3.data.loader import Stream
from dalle3.runtime import fast_bfloat16
from dalle3.tokenizers.huggingface import HuggingFace, train_bpe
from dalle3.train.loop import LoopConfig, train
from dalle3.train.optim import OptimConfig
from dalle3.train.parallel import SingleDevice
from dalle3.train.run import RunFolder
from dalle3.train.task import Task
from recipes.shapes.source import Scenes


def fit(
    task: Task,
    stream: Stream,
    folder: Path,
    *,
    loop: LoopConfig,
    optim: OptimConfig,
    resume: Literal["auto", "never"],
) -> Path:
    """The last checkpoint of a run on one core, in bfloat16 where that is faster."""
    run = RunFolder(folder)
    start = run.begin({"task": type(task).__name__}, resume=resume)
    cpu = torch.device("cpu")
    device = SingleDevice(cpu, dtype=torch.bfloat16 if fast_bfloat16(cpu) else torch.float32)
    return train(task, stream, loop, optim, run=run, start=start, parallel=device).checkpoint


def text_tokenizer(source: Scenes) -> HuggingFace:
    """A tokenizer that knows every word of the captions."""
    return train_bpe((line for index in range(1000) for line in source.load(index).captions), 256)
