"""LPIPS: how different two pictures look, by the features of a VGG16 (arXiv:1801.03924).

Shapes: B batch, H W picture in pixels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Lpips(nn.Module):
    """The distance with VGG16 and its learned heads; frozen."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *(width for stage in STAGES for width in stage))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.heads = nn.ParameterList(torch.zeros(stage[-1]) for stage in STAGES)
        for name, values in (("mean", (-0.030, -0.088, -0.188)), ("deviation", (0.458, 0.448, 0.450))):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, drawn: Tensor, images: Tensor) -> Tensor:
        """The distances (B,), 0 for the same, of pictures (B, 3, H, W) in [-1, 1]; gradients reach `drawn` alone."""
        with torch.no_grad():
            wanted = self.features(images)
        distances = [
            ((a - b).square() * head[:, None, None]).sum(dim=1).mean(dim=(1, 2))
            for a, b, head in zip(self.features(drawn), wanted, self.heads, strict=True)
        ]
        return torch.stack(distances).sum(dim=0)

    def features(self, images: Tensor) -> list[Tensor]:
        """The features at the end of each stage, scaled to length 1 over channels."""
        x, found, layers = (images - self.mean) / self.deviation, [], iter(self.convolutions)
        for number, stage in enumerate(STAGES):
            if number:
                x = F.max_pool2d(x, 2)
            for _ in stage:
                x = F.relu(next(layers)(x))
            found.append(x / (x.square().sum(dim=1, keepdim=True) + 1e-20).sqrt())
        return found
