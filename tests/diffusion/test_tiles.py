"""Super-resolution in tiles: no seams, any multiple of the stride."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion.errors import ShapeError
from diffusion.guidance import exact_gradient
from diffusion.process import Prediction, Process, ProcessConfig
from diffusion.samplers import ddpm, finish, per_image_noise
from diffusion.tiles import Region, tile_regions, tiled, upsampler
from diffusion.unet import SuperResUNet, UNetConfig


def blur(x: Tensor, t: int) -> Prediction:
    """A denoiser that sees four pixels around each, and nothing further."""
    kernel = torch.ones(3, 1, 9, 9) / 81
    x0 = F.conv2d(F.pad(x, (4, 4, 4, 4), mode="replicate"), kernel, groups=3)
    return Prediction(x0, 0.01 * torch.ones_like(x0))


def picture(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), tile=st.integers(3, 9), overlap=st.integers(0, 64))
def test_regions_cover_the_picture_and_share_what_they_should(rows, columns, tile, overlap):
    height, width = 32 * rows, 32 * columns
    regions = tile_regions(height, width, tile=32 * tile, overlap=overlap)
    covered = torch.zeros(height, width)
    for region in regions:
        assert all(value % 32 == 0 for value in region)
        region.of(covered).add_(1)
    assert covered.min() >= 1
    tops = sorted({region.top for region in regions})
    assert all(upper + regions[0].height - lower >= overlap for upper, lower in pairwise(tops))


def test_a_picture_of_one_tile_is_one_region():
    assert tile_regions(256, 192, tile=256, overlap=64) == [Region(0, 0, 256, 192)]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (224, 128)])
def test_a_local_denoiser_in_tiles_is_nearly_itself(height, width):
    x = picture(height, width)
    whole = blur(x, 0)
    tiles = tiled(lambda region: blur, height=height, width=width, tile=64, overlap=32)(x, 0)
    # Only within 4 pixels of a tile's edge does blur see less than it would; there tiles weigh least.
    assert (tiles.x0 - whole.x0).abs().mean() < 0.02 * whole.x0.abs().mean()
    torch.testing.assert_close(tiles.variance, whole.variance)


def test_there_is_no_seam():
    """A denoiser whose tone depends on its tile, as a network's does: steps between pixels stay small."""

    def toned(region: Region):
        tone = 0.5 if (region.left // 32) % 2 else -0.5
        return lambda x, t: Prediction(torch.full_like(x, tone), torch.ones_like(x))

    x0 = tiled(toned, height=64, width=256, tile=64, overlap=32)(picture(64, 256), 0).x0
    assert x0.diff(dim=3).abs().max() < 1.05 * 1.0 / 32
    assert x0.diff(dim=2).abs().max() < 1e-5


@pytest.fixture(scope="module")
def network():
    config = UNetConfig(num_channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=())
    torch.manual_seed(0)
    made = SuperResUNet(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return made.eval().requires_grad_(False)


def test_the_upsampler_in_one_tile_is_the_network_on_the_whole(network):
    process, x = Process(ProcessConfig(), "4"), picture(64, 96)
    low_res = picture(16, 24)
    whole = process.denoiser(lambda x, timesteps: network(x, timesteps, low_res=low_res))(x, 2)
    found = upsampler(network, low_res, process=process, height=64, width=96, tile=128)(x, 2)
    torch.testing.assert_close(found.x0, whole.x0)
    torch.testing.assert_close(found.variance, whole.variance)


def test_an_upsampler_in_tiles_walks_to_the_end(network):
    process = Process(ProcessConfig(), "4")
    denoise = upsampler(network, picture(16, 24), process=process, height=64, width=96, tile=32, overlap=16)
    noise = per_image_noise([torch.Generator().manual_seed(index) for index in range(2)])
    result = finish(ddpm(denoise, picture(64, 96), process=process, noise=noise))
    assert result.shape == (2, 3, 64, 96)
    assert result.isfinite().all()


def test_gradients_pass_through_tiles(network):
    process, x = Process(ProcessConfig(), "4"), picture(64, 64)
    denoise = upsampler(network, picture(16, 16), process=process, height=64, width=64, tile=32, overlap=16)
    guided = exact_gradient(denoise, lambda x0, x, t: x0.square().sum(dim=(1, 2, 3)))
    gradient = guided(x, 1).gradient
    assert gradient is not None
    assert (gradient.abs().amin(dim=(0, 1)) > 0).all()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"height": 100, "width": 64, "tile": 64, "overlap": 32}, "height 100 does not fit"),
        ({"height": 64, "width": 0, "tile": 64, "overlap": 32}, "width 0 does not fit"),
        ({"height": 64, "width": 64, "tile": 50, "overlap": 8}, "tile 50 does not fit"),
        ({"height": 64, "width": 64, "tile": 64, "overlap": 40}, "cannot overlap by 40; at most 32"),
        ({"height": 64, "width": 64, "tile": 64, "overlap": -1}, "cannot overlap by -1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ShapeError, match=message):
        tile_regions(**sizes)
