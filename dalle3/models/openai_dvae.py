"""OpenAI's discrete VAE, the image tokenizer of the first DALL-E (arXiv:2102.12092, appendix A).

State dicts have the keys of OpenAI's `encoder.pkl` and `decoder.pkl`, under `enc.` and `dec.` as in DALLE-pytorch.

Shapes: B batch, H W picture in pixels, h w grid of codes (H / 8, W / 8), V entries of the codebook, D width of what
an entry becomes in the decoder.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle3.config import option
from dalle3.errors import ConfigError
from dalle3.models.image_tokenizer import check_codes, check_images

GROUPS = 4
FACTOR = 2 ** (GROUPS - 1)
LOGIT_LAPLACE_EPS = 0.1


@dataclass(frozen=True, kw_only=True)
class OpenAIDiscreteVAEConfig:
    """OpenAI's dVAE; the defaults are the published model, whose names they keep but for `num_tokens`."""

    num_tokens: int = option(8192, help="entries of the codebook")
    image_size: int = option(256, help="side in pixels of the pictures it is made for")
    n_hid: int = option(256, help="channels at full resolution, a multiple of 4")
    n_init: int = option(128, help="channels a code becomes in the decoder")
    n_blk_per_group: int = option(2, help="residual blocks at each resolution")

    def __post_init__(self) -> None:
        """Raises ConfigError for what no network can be built from."""
        if self.n_hid < 4 or self.n_hid % 4:
            raise ConfigError(f"n_hid is {self.n_hid}; it must be a positive multiple of 4")
        if self.image_size % FACTOR:
            raise ConfigError(f"image_size is {self.image_size}; it must be a multiple of {FACTOR}")
        if self.n_blk_per_group < 1:
            raise ConfigError(f"n_blk_per_group is {self.n_blk_per_group}; it must be at least 1")


class Conv2d(nn.Module):
    """A convolution that keeps the size, with parameters named as OpenAI's: `w` and `b`."""

    def __init__(self, n_in: int, n_out: int, side: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(n_out, n_in, side, side) / (n_in * side**2) ** 0.5)
        self.b = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) to (B, n_out, H, W)."""
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """Four convolutions with the given `sides`, scaled down by `gain`, beside a shortcut."""

    def __init__(self, n_in: int, n_out: int, *, sides: Sequence[int], gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.id_path = nn.Identity() if n_in == n_out else Conv2d(n_in, n_out, 1)
        widths = [n_in, *[n_out // 4] * 3, n_out]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index, ((before, after), side) in enumerate(zip(pairwise(widths), sides, strict=True), start=1):
            layers[f"relu_{index}"] = nn.ReLU()
            layers[f"conv_{index}"] = Conv2d(before, after, side)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) to (B, n_out, H, W)."""
        return self.id_path(x) + self.gain * self.res_path(x)


class Coder(nn.Module):
    """Half of the dVAE: an input convolution, four groups of blocks with `resample` between them, an output one."""

    def __init__(
        self,
        first: Conv2d,
        widths: Sequence[int],
        *,
        n_out: int,
        n_blk_per_group: int,
        sides: Sequence[int],
        resample: OrderedDict[str, nn.Module],
    ) -> None:
        super().__init__()
        gain = 1 / (GROUPS * n_blk_per_group) ** 2
        groups: OrderedDict[str, nn.Module] = OrderedDict(input=first)
        for index, (before, after) in enumerate(pairwise(widths), start=1):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for block, width in enumerate([before] + [after] * (n_blk_per_group - 1), start=1):
                layers[f"block_{block}"] = Block(width, after, sides=sides, gain=gain)
            groups[f"group_{index}"] = nn.Sequential(layers | resample if index < GROUPS else layers)
        groups["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(widths[-1], n_out, 1)))
        self.blocks = nn.Sequential(groups)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, V, h, w) of mapped pictures (B, 3, H, W) from the encoder, and back from the decoder."""
        return self.blocks(x)


class OpenAIDiscreteVAE(nn.Module):
    """OpenAI's dVAE. It ships without training code; the encoder and decoder are inference networks here."""

    kind = "openai_dvae"
    drawing_parts: tuple[str, ...] = ("dec",)

    def __init__(self, config: OpenAIDiscreteVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens, self.embed_dim = config.num_tokens, config.n_init
        self.factor, self.image_size = FACTOR, config.image_size
        self.enc = _encoder(config)
        self.dec = _decoder(config)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The likeliest codes (B, h, w), int64, of pictures (B, 3, H, W) in [0, 1].

        Raises:
            ImageError: H or W is not a multiple of 8.
        """
        return self.scores(images).argmax(dim=1)

    def scores(self, images: Tensor) -> Tensor:
        """Logits (B, V, h, w), float32, of the codes of pictures (B, 3, H, W) in [0, 1].

        Raises:
            ImageError: H or W is not a multiple of 8.
        """
        check_images(images, self.factor)
        return self.enc(map_pixels(images).to(self._decoder_input.w.dtype)).float()

    def embed(self, codes: Tensor) -> Tensor:
        """What codes (B, h, w) become in the decoder's first layer, (B, D, h, w).

        This dVAE has no codebook apart from its networks: the decoder takes one-hot codes, and its input, a 1x1
        convolution, gives each code one column of its weight plus the bias. Those columns are the entries.

        Raises:
            CodesError: a code is outside the codebook.
        """
        check_codes(codes, self.num_tokens)
        first = self._decoder_input
        return (F.embedding(codes, first.w[:, :, 0, 0].t()) + first.b).permute(0, 3, 1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of codes (B, h, w).

        Raises:
            CodesError: a code is outside the codebook.
        """
        return unmap_pixels(torch.sigmoid(self.decode_raw(codes)[:, :3].float()))

    def decode_raw(self, codes: Tensor) -> Tensor:
        """Three means and three log scales of each pixel's logit-Laplace distribution, (B, 6, H, W).

        Raises:
            CodesError: a code is outside the codebook.
        """
        return self.dec.blocks[1:](self.embed(codes))

    @property
    def _decoder_input(self) -> Conv2d:
        first = self.dec.blocks[0]
        assert isinstance(first, Conv2d)
        return first


def map_pixels(images: Tensor) -> Tensor:
    """Pictures in [0, 1] as the encoder takes them, in [0.1, 0.9]: the logit of a pixel must be finite."""
    return (1 - 2 * LOGIT_LAPLACE_EPS) * images + LOGIT_LAPLACE_EPS


def unmap_pixels(images: Tensor) -> Tensor:
    """The inverse of `map_pixels`, clamped to [0, 1]."""
    return ((images - LOGIT_LAPLACE_EPS) / (1 - 2 * LOGIT_LAPLACE_EPS)).clamp(0, 1)


def _encoder(config: OpenAIDiscreteVAEConfig) -> Coder:
    n_hid = config.n_hid
    return Coder(
        Conv2d(3, n_hid, 7),
        [n_hid, n_hid, 2 * n_hid, 4 * n_hid, 8 * n_hid],
        n_out=config.num_tokens,
        n_blk_per_group=config.n_blk_per_group,
        sides=(3, 3, 3, 1),
        resample=OrderedDict(pool=nn.MaxPool2d(2)),
    )


def _decoder(config: OpenAIDiscreteVAEConfig) -> Coder:
    n_hid = config.n_hid
    return Coder(
        Conv2d(config.num_tokens, config.n_init, 1),
        [config.n_init, 8 * n_hid, 4 * n_hid, 2 * n_hid, n_hid],
        n_out=6,
        n_blk_per_group=config.n_blk_per_group,
        sides=(1, 3, 3, 3),
        resample=OrderedDict(upsample=nn.Upsample(scale_factor=2)),
    )
