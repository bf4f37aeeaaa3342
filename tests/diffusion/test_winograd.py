"""Winograd's convolution is the convolution, by C and by PyTorch's operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dalle3 import compiled
from diffusion import winograd_native
from diffusion.convolution import Convolution
from diffusion.winograd import convolve, tile_size
from diffusion.winograd_native import NativeWinograd
from tests.diffusion.helpers import convolving, relative_error

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


@pytest.fixture(params=["native", "operators"])
def engine(request):
    with convolving(request.param):
        yield request.param


def operands(height: int, width: int, *, channels: int = 48, out_channels: int = 80, batch: int = 2):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=rng)
    weight = torch.randn(out_channels, channels, 3, 3, generator=rng) / (3 * channels**0.5)
    return x, weight, torch.randn(out_channels, generator=rng)


def needs_bfloat16(engine: str) -> None:
    if engine == "native" and torch.bfloat16 not in NativeWinograd(compiled.library(winograd_native.SOURCE)).dtypes:
        pytest.skip("this processor multiplies no bfloat16")


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("picture_format", FORMATS)
@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 20), (36, 12)])
@pytest.mark.parametrize(("size", "tolerance"), [(2, 1e-6), (4, 1e-5)])
def test_it_agrees_with_the_direct_kernel(engine, size, tolerance, height, width, picture_format, weight_format):
    x, weight, bias = operands(height, width)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    x, weight = (t.contiguous(memory_format=FORMATS[f]) for t, f in ((x, picture_format), (weight, weight_format)))
    assert relative_error(convolve(x, weight, bias, size=size), expected) < tolerance


@pytest.mark.parametrize("out_channels", [16, 32, 48, 64, 144])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_width_and_number_of_threads(engine, threads, out_channels):
    x, weight, bias = operands(20, 20, channels=32, out_channels=out_channels, batch=3)
    expected, before = F.conv2d(x, weight, bias, padding=1), torch.get_num_threads()
    torch.set_num_threads(threads)
    found = convolve(x, weight, bias, size=4)
    torch.set_num_threads(before)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("size", [2, 4])
def test_its_gradient_is_the_direct_kernels(engine, size):
    x, weight, bias = operands(8, 12)
    x.requires_grad_()
    bias.requires_grad_()
    pull = torch.randn(2, 80, 8, 12, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(F.conv2d(x, weight, bias, padding=1), (x, bias), pull)
    found = torch.autograd.grad(convolve(x, weight, bias, size=size), (x, bias), pull)
    assert relative_error(found[0], expected[0]) < 1e-5
    assert relative_error(found[1], expected[1]) < 1e-5


@pytest.mark.parametrize("engine", ["operators"], indirect=True)
def test_strips_change_nothing(engine, monkeypatch):
    x, weight, bias = operands(32, 16)
    whole = convolve(x, weight, bias, size=4)
    monkeypatch.setattr("diffusion.winograd_operators.STRIP_BYTES", 1)
    assert relative_error(convolve(x, weight, bias, size=4), whole) < 1e-6


def test_what_is_not_finite_stays_so(engine):
    x, weight, bias = operands(8, 8)
    x[0, 0, 0, 0], x[0, 0, 7, 7] = float("nan"), float("inf")
    found = convolve(x, weight, bias, size=4)
    assert not found[0, :, :2, :2].isfinite().any()
    assert not found[0, :, 6:, 6:].isfinite().any()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("weight_format", FORMATS)
def test_bfloat16_errs_little_more_than_the_direct_kernel(engine, weight_format):
    needs_bfloat16(engine)
    x, weight, bias = (tensor.bfloat16() for tensor in operands(64, 64, channels=64, out_channels=16))
    weight = weight.contiguous(memory_format=FORMATS[weight_format])
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    errors = [
        (found.double() - exact).square().mean().sqrt()
        for found in (convolve(x, weight, bias, size=2), F.conv2d(x, weight, bias, padding=1))
    ]
    assert errors[0] < 2.5 * errors[1]


@pytest.mark.parametrize("engine", ["operators"], indirect=True)
def test_operators_take_only_wide_layers_of_large_maps(engine):
    wide = torch.zeros(128, 128, 3, 3)
    assert tile_size(torch.zeros(1, 128, 64, 64), wide) == 4
    assert tile_size(torch.zeros(1, 128, 32, 32), wide) == 2
    assert tile_size(torch.zeros(1, 128, 66, 64), wide) == 2
    assert tile_size(torch.zeros(1, 128, 16, 16), wide) is None
    assert tile_size(torch.zeros(16, 128, 16, 16), wide) is None
    assert tile_size(torch.zeros(1, 128, 63, 64), wide) is None
    assert tile_size(torch.zeros(1, 64, 64, 64), wide[:, :64]) is None
    assert tile_size(torch.zeros(1, 128, 64, 64, dtype=torch.bfloat16), wide) == 2
    assert tile_size(torch.zeros(1, 128, 64, 64, dtype=torch.float64), wide) is None


@pytest.mark.parametrize("engine", ["native"], indirect=True)
def test_c_takes_smaller_ones_too(engine):
    x, weight = torch.zeros(1, 32, 32, 32), torch.zeros(32, 32, 3, 3)
    assert tile_size(x, weight) == 4
    assert tile_size(x[:, :, :16, :16], weight) is None
    assert tile_size(x[:, :, :16, :16].expand(4, -1, -1, -1), weight) == 4
    assert tile_size(x.expand(-1, 32, -1, -1)[:, :24], weight[:, :24]) is None
    assert tile_size(x.bfloat16(), weight.bfloat16()) is None


def test_kernels_that_learn_go_the_direct_way():
    x, weight = torch.zeros(1, 128, 64, 64), torch.zeros(128, 128, 3, 3, requires_grad=True)
    assert tile_size(x, weight) is None
    with torch.no_grad():
        assert tile_size(x, weight) == 4


def test_autocast_picks_the_format_itself(engine):
    x, weight = torch.zeros(1, 128, 64, 64), torch.zeros(128, 128, 3, 3)
    assert tile_size(x, weight) == 4
    with torch.autocast("cpu", torch.bfloat16):
        assert tile_size(x, weight) is None


def test_compiled_networks_go_the_direct_way(engine):
    layer, x = Convolution(128, 128).requires_grad_(False), torch.randn(1, 128, 64, 64)
    compiled_layer = torch.compile(layer, fullgraph=True, backend="eager")
    assert relative_error(compiled_layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1)) < 1e-6


def test_the_layer_gives_the_same_with_and_without_gradients(engine):
    torch.manual_seed(0)
    layer, x = Convolution(128, 128), torch.randn(1, 128, 32, 32)
    direct = layer(x)
    with torch.no_grad():
        # Of this size C does tiles of 4, operators of 2.
        assert relative_error(layer(x), direct) < (1e-5 if engine == "native" else 2e-6)
