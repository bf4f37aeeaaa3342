"""Training the maps that CLIP's reading of captions lays under a DALLE's pictures, before and without the rest.

Each map learns the mean picture of its caption, in the few numbers that tell codes apart best. There is no transformer
in it, so it sees fifty times the pictures in the same time, and more.

Shapes: B batch, L caption tokens, h w grid of codes, M = h * w, C channels of the maps, V entries of the codebook,
D width of the codebook.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle3.data.loader import Batch
from dalle3.errors import ConfigError
from dalle3.models.dalle import Dalle
from dalle3.models.image_tokenizer import ImageTokenizer
from dalle3.train.task import Metrics, Preview, to_pil
from dalle3.train.tasks.dalle import DalleTask


class MapsObjective(nn.Module):
    """The squared error of maps against what stands for the codes of their pictures."""

    targets: Tensor

    def __init__(self, dalle: Dalle, targets: Tensor) -> None:
        super().__init__()
        self.dalle = dalle
        self.register_buffer("targets", targets, persistent=False)  # (V, C)

    def forward(self, text: Tensor, codes: Tensor) -> tuple[Tensor, Metrics]:
        """The error for captions (B, L) and codes (B, h, w), the mean of all channels."""
        assert self.dalle.clip_maps is not None
        error = F.mse_loss(self.dalle.clip_maps.channels(text), self.targets[codes.flatten(1)])
        return error, {"error": error.detach()}


class MapsTask(DalleTask):
    """The maps of a DALLE, which draws as before until it is trained with them. No part of a caption is left out here.

    Args:
        base: the DALLE as it would learn whole.
    Raises:
        ConfigError: it has no such maps, or they have more channels than a codebook entry has numbers.
    """

    def __init__(self, base: DalleTask) -> None:
        whole = dataclasses.replace(base.config, caption_dropout=0.0, words_dropout=0.0, code_noise=0.0)
        super().__init__(base.dalle, base.codec, base.tokenizer, whole)  # type: ignore[arg-type]
        maps = base.dalle.clip_maps
        if maps is None:
            raise ConfigError("this DALLE has no maps of CLIP's reading; give it some with --clip_maps")
        targets = principal_parts(self.codec, base.dalle.config.clip_maps)  # type: ignore[arg-type]
        self.objective = MapsObjective(base.dalle, targets)  # type: ignore[assignment]
        base.dalle.requires_grad_(False)
        maps.requires_grad_(True)
        maps.to_dim.requires_grad_(False)  # at nothing, where the DALLE's own training finds it

    @torch.no_grad()
    def preview(self, batch: Batch, *, rng: torch.Generator) -> Preview:
        """Pictures as the image tokenizer renders them, above those of the codes nearest to the maps."""
        inputs = self.prepare(batch, step=0, rng=rng)
        maps, targets = self.dalle.clip_maps, self.objective.targets
        assert maps is not None
        nearest = torch.cdist(maps.channels(inputs["text"]).float(), targets.expand(len(inputs["text"]), -1, -1))
        pictures = [self.codec.decode(inputs["codes"])]
        pictures.append(self.codec.decode(nearest.argmin(-1).view_as(inputs["codes"])))
        return Preview(images=to_pil(torch.cat(pictures)), columns=len(batch.captions))


@torch.no_grad()
def principal_parts(codec: ImageTokenizer, channels: int) -> Tensor:
    """The codebook's entries (V, C) in the `channels` directions in which they differ most, of variance 1 in the first.

    Raises:
        ConfigError: an entry has fewer numbers.
    """
    if channels > codec.embed_dim:
        raise ConfigError(
            f"clip_maps is {channels}; an entry of this image tokenizer has {codec.embed_dim} numbers, so take fewer"
        )
    assert isinstance(codec, nn.Module)
    every = torch.arange(codec.num_tokens, device=next(codec.parameters()).device)
    entries = codec.embed(every[None, :, None])[0, :, :, 0].mT.float()  # (V, D)
    entries = entries - entries.mean(dim=0)
    _, sizes, directions = torch.linalg.svd(entries, full_matrices=False)
    return entries @ directions[:channels].mT / (sizes[0] / len(entries) ** 0.5)
