"""The patch discriminator a VQGAN is trained against: pix2pix's (arXiv:1611.07004), modules named as in taming.

Shapes: B batch, H W picture in pixels, h w patches.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dalle3.config import option
from dalle3.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """A patch discriminator; the names are taming's."""

    disc_ndf: int = option(64, help="channels of its first layer")
    disc_num_layers: int = option(3, help="layers that halve the side; with 3 a verdict is on 70 pixels")

    def __post_init__(self) -> None:
        """Raises ConfigError for what no network can be built from."""
        if min(self.disc_ndf, self.disc_num_layers) < 1:
            raise ConfigError(
                f"disc_ndf is {self.disc_ndf} and disc_num_layers {self.disc_num_layers}; both must be at least 1"
            )


class PatchDiscriminator(nn.Module):
    """How real each patch of a picture looks."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        widths = [config.disc_ndf * min(2**level, 8) for level in range(config.disc_num_layers + 1)]
        layers: list[nn.Module] = [_convolution(3, widths[0], stride=2), nn.LeakyReLU(0.2)]
        for level in range(1, len(widths)):
            stride = 1 if level == len(widths) - 1 else 2
            layers.append(_convolution(widths[level - 1], widths[level], stride=stride, bias=False))
            layers += [_norm(widths[level]), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers, _convolution(widths[-1], 1, stride=1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, h, w), high for patches that look real, of pictures (B, 3, H, W) in [-1, 1]."""
        return self.main(images)


def _convolution(channels: int, out_channels: int, *, stride: int, bias: bool = True) -> nn.Conv2d:
    layer = nn.Conv2d(channels, out_channels, 4, stride=stride, padding=1, bias=bias)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


def _norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    nn.init.normal_(layer.weight, mean=1.0, std=0.02)
    return layer
