"""Training the upsampler: pictures from smaller ones, as guided-diffusion's super_res_train.

Shapes: B batch, H W picture in pixels, s side of a small picture.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle3.models.decoder import Upsampler
from dalle3.train.tasks.denoising import Condition, DenoisingConfig, DenoisingObjective, DenoisingTask
from diffusion.process import Network, Process
from diffusion.unet import stretch


class UpsamplerObjective(DenoisingObjective):
    """The loss of an upsampler."""

    network: Upsampler

    def bind(self, condition: Condition) -> Network:
        """The upsampler of small pictures (B, 3, s, s) in -1..1."""
        return lambda x, t: self.network(x, t, low_res=condition["low_res"])


class UpsamplerTask(DenoisingTask):
    """An upsampler, and pictures that are made small for it."""

    rough = "stretched"
    model: Upsampler

    def __init__(self, model: Upsampler, config: DenoisingConfig, *, held_out: Tensor | None = None) -> None:
        process = Process(model.settings.process)
        timesteps = config.timesteps(model.settings)
        super().__init__(model, UpsamplerObjective(model, process, timesteps), held_out=held_out)

    def condition(self, images: Tensor, *, rng: torch.Generator | None) -> Condition:
        """Pictures (B, 3, H, W) in [0, 1] made small by averaging, (B, 3, s, s) in -1..1; nothing is drawn."""
        del rng
        small = images.shape[-1] // self.model.settings.scale
        return {"low_res": F.interpolate(images, (small, small), mode="area") * 2 - 1}

    def baseline(self, condition: Condition) -> Tensor:
        """The small pictures, stretched."""
        side = condition["low_res"].shape[-1] * self.model.settings.scale
        return (stretch(condition["low_res"], side, side) + 1) / 2
