"""What a trainable model tells the loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from dalle3.checkpoint import Checkpoint
from dalle3.data.loader import Batch
from dalle3.tokenizers.base import Tokenizer

Metrics = dict[str, Tensor]
Correction = tuple[nn.Parameter, Callable[[Tensor], Tensor]]  # weights, and what makes of them what they shall be


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What to look at while it trains: pictures, in rows of `columns`, and figures that are too dear for every step."""

    images: list[Image.Image] = field(default_factory=list)
    columns: int = 8
    metrics: dict[str, float] = field(default_factory=dict)


class Task(Protocol):
    """A model, its loss and its inputs. Frozen helpers stay out of `objective`: never sharded, never averaged."""

    @property
    def model(self) -> nn.Module:
        """What is saved, averaged and counted."""
        ...

    @property
    def objective(self) -> nn.Module:
        """A module whose `forward(**inputs)` gives loss and metrics: what runs under DDP or DeepSpeed.

        It may have a method `corrections() -> list[Correction]`: all processes call it after each step and carry out
        what it returns, which must be the same in all. Where not all weights have a part in each loss, it has a method
        `left_out() -> list[nn.Parameter]`: those that had none in the last, the same in all processes.
        """
        ...

    @property
    def tokens_per_sample(self) -> int:
        """Tokens of text and of pictures that the model reads of a sample; 0 where it reads none."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What is saved beside the model to read captions with."""
        ...

    def prepare(self, batch: Batch, *, step: int, rng: torch.Generator) -> dict[str, Any]:
        """The inputs of `objective`, on its device; no gradient flows here, and all randomness comes from `rng`."""
        ...

    def preview(self, batch: Batch, *, rng: torch.Generator) -> Preview:
        """What the model makes of a batch now."""
        ...

    def checkpoint(self, state: dict[str, Tensor]) -> Checkpoint:
        """What a checkpoint folder should hold, with `state` as the model's weights."""
        ...


def to_unit(pictures: Tensor, device: torch.device) -> Tensor:
    """Pictures uint8 (B, 3, H, W) as float32 in [0, 1] on `device`."""
    return pictures.to(device).float() / 255


def to_pil(pictures: Tensor) -> list[Image.Image]:
    """Pictures (B, 3, H, W) in [0, 1] as images."""
    pixels = (pictures.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
    return [Image.fromarray(picture.numpy()) for picture in pixels]


def grid(images: list[Image.Image], columns: int) -> Image.Image:
    """The images side by side in rows of `columns`, two white pixels apart."""
    width, height = images[0].width + 2, images[0].height + 2
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (width * min(columns, len(images)) - 2, height * rows - 2), "white")
    for place, image in enumerate(images):
        sheet.paste(image, (place % columns * width, place // columns * height))
    return sheet
