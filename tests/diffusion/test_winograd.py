"""Winograd's convolution is the convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diffusion.unet_blocks import Convolution
from diffusion.winograd import convolve, tile_size
from tests.diffusion.helpers import relative_error


def operands(height: int, width: int, *, channels: int = 20, out_channels: int = 12, batch: int = 2):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=rng)
    weight = torch.randn(out_channels, channels, 3, 3, generator=rng) / (3 * channels**0.5)
    return x, weight, torch.randn(out_channels, generator=rng)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 20), (36, 12)])
@pytest.mark.parametrize(("size", "tolerance"), [(2, 1e-6), (4, 2e-5)])
def test_it_agrees_with_the_direct_kernel(size, tolerance, height, width, memory_format):
    x, weight, bias = operands(height, width)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    found = convolve(x.contiguous(memory_format=memory_format), weight, bias, size=size)
    assert relative_error(found, expected) < tolerance


def test_strips_change_nothing(monkeypatch):
    x, weight, bias = operands(32, 16)
    whole = convolve(x, weight, bias, size=4)
    monkeypatch.setattr("diffusion.winograd.STRIP_BYTES", 1)
    assert relative_error(convolve(x, weight, bias, size=4), whole) < 1e-6


def test_bfloat16_errs_little_more_than_the_direct_kernel():
    x, weight, bias = (tensor.bfloat16() for tensor in operands(64, 64, channels=64))
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    errors = [
        (found.double() - exact).square().mean().sqrt()
        for found in (convolve(x, weight, bias, size=2), F.conv2d(x, weight, bias, padding=1))
    ]
    assert errors[0] < 2.5 * errors[1]


def test_only_wide_layers_of_large_maps_without_gradients_take_it():
    wide = torch.zeros(128, 128, 3, 3)
    with torch.no_grad():
        assert tile_size(torch.zeros(1, 128, 64, 64), wide) == 4
        assert tile_size(torch.zeros(1, 128, 32, 32), wide) == 2
        assert tile_size(torch.zeros(1, 128, 66, 64), wide) == 2
        assert tile_size(torch.zeros(1, 128, 16, 16), wide) is None
        assert tile_size(torch.zeros(1, 128, 63, 64), wide) is None
        assert tile_size(torch.zeros(1, 64, 64, 64), wide[:, :64]) is None
        assert tile_size(torch.zeros(1, 128, 64, 64, dtype=torch.bfloat16), wide) == 2
        assert tile_size(torch.zeros(1, 128, 64, 64, dtype=torch.float64), wide) is None
    assert tile_size(torch.zeros(1, 128, 64, 64), wide) is None


def test_the_layer_gives_the_same_with_and_without_gradients():
    torch.manual_seed(0)
    layer, x = Convolution(128, 128), torch.randn(1, 128, 32, 32)
    direct = layer(x)
    with torch.no_grad():
        assert relative_error(layer(x), direct) < 2e-6
