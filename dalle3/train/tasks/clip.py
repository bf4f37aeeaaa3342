"""Training a CLIP: each picture must find its own caption among those of its batch, and the other way round.

Shapes: B batch, N caption tokens, H W picture in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dalle3.checkpoint import Checkpoint
from dalle3.config import option
from dalle3.data.loader import Batch
from dalle3.models.clip import MAX_LOGIT_SCALE, Clip, contrastive_loss
from dalle3.tokenizers.base import Tokenizer
from dalle3.train.exchange import of_all
from dalle3.train.task import Correction, Metrics, Preview, to_unit
from dalle3.train.tasks.captions import caption_rows


@dataclass(frozen=True, kw_only=True)
class ClipTaskConfig:
    """What a CLIP is shown of its captions."""

    truncate_captions: bool = option(True, help="cut captions that are too long instead of stopping")


class ClipObjective(nn.Module):
    """The contrastive loss over a batch; while training, over those of all processes together, as open_clip's is."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor, text: Tensor) -> tuple[Tensor, Metrics]:
        """The loss on pictures (B, 3, H, W) in [0, 1] and captions (B, N), and how often each finds the other."""
        pictures, captions = self.clip.encode_image(images), self.clip.encode_text(text)
        if self.training:
            pictures, captions = of_all(pictures), of_all(captions)
        loss = contrastive_loss(pictures, captions, self.clip.logit_scale)
        cosines = (pictures @ captions.mT).detach()
        own = torch.arange(len(cosines), device=cosines.device)
        found = {
            "caption_accuracy": (cosines.argmax(1) == own).float().mean(),
            "picture_accuracy": (cosines.argmax(0) == own).float().mean(),
        }
        return loss, found

    def corrections(self) -> list[Correction]:
        """Holds the logit scale, grown by the step before, to what CLIP allows."""
        return [(self.clip.logit_scale, lambda scale: scale.clamp(max=MAX_LOGIT_SCALE))]


class ClipTask:
    """A CLIP, its tokenizer, and captioned pictures."""

    def __init__(self, clip: Clip, tokenizer: Tokenizer, config: ClipTaskConfig) -> None:
        self.model, self.tokenizer, self.config = clip, tokenizer, config
        self.objective = ClipObjective(clip)

    @property
    def tokens_per_sample(self) -> int:
        """Of the caption, and patches of the picture."""
        config = self.model.config
        return config.context_length + (config.image_size // config.patch_size) ** 2

    def prepare(self, batch: Batch, *, step: int, rng: torch.Generator) -> dict[str, Any]:
        """Pictures and captions."""
        device, length = self.model.logit_scale.device, self.model.config.context_length
        rows = caption_rows(self.tokenizer, batch.captions, length, truncate=self.config.truncate_captions)
        return {"images": to_unit(batch.content, device), "text": rows.to(device)}

    def preview(self, batch: Batch, *, rng: torch.Generator) -> Preview:
        """How often picture and caption find each other in this batch; there is nothing to draw."""
        _, found = self.objective(**self.prepare(batch, step=0, rng=rng))
        return Preview(metrics={f"preview_{name}": float(value) for name, value in found.items()})

    def checkpoint(self, state: dict[str, Tensor]) -> Checkpoint:
        """The CLIP."""
        return Checkpoint(kind="clip", config=self.model.config, state=state)
