"""What every image tokenizer offers: pictures to codes, codes to embeddings, codes to pictures.

Shapes: B batch, H W picture in pixels, h w grid of codes (H / factor, W / factor), D codebook width.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from dalle3.errors import CodesError, ImageError


class ImageTokenizer(Protocol):
    """An nn.Module that is one of GumbelVQ, VQGAN, DiscreteVAE, OpenAIDiscreteVAE."""

    kind: str  # the name in config.json: "gumbel_vq", "vqgan", "discrete_vae", "openai_dvae"
    num_tokens: int  # entries of the codebook
    embed_dim: int  # D
    factor: int  # pixels per code along a side
    image_size: int  # the side in pixels it was made for
    drawing_parts: tuple[str, ...]  # those that only turn codes into pictures: others may mean the same codes

    def encode(self, images: Tensor) -> Tensor:
        """The codes (B, h, w), int64, of pictures (B, 3, H, W) in [0, 1] of any floating type.

        Raises:
            ImageError: H or W is not a multiple of `factor`.
        """
        ...

    def embed(self, codes: Tensor) -> Tensor:
        """The codebook entries (B, D, h, w) of codes (B, h, w): what the diffusion decoder is conditioned on."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), float32 in [0, 1] whatever the weights' type, of codes (B, h, w)."""
        ...


def check_images(images: Tensor, factor: int) -> None:
    """Raises ImageError unless `images` is a floating (B, 3, H, W) with sides that are multiples of `factor`."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ImageError(f"pictures of shape {tuple(images.shape)}; the image tokenizer takes (B, 3, H, W)")
    if not images.is_floating_point():
        raise ImageError(f"pictures of {images.dtype}; the image tokenizer takes floats in [0, 1]: divide bytes by 255")
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        raise ImageError(
            f"a picture of {width}x{height} pixels; the sides must be multiples of {factor}: resize or crop it"
        )


def check_codes(codes: Tensor, num_tokens: int) -> None:
    """Raises CodesError unless `codes` is an integer (B, h, w) within [0, num_tokens)."""
    if codes.ndim != 3 or codes.is_floating_point():
        raise CodesError(f"codes of shape {tuple(codes.shape)}, {codes.dtype}; expected integers of shape (B, h, w)")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= num_tokens:
        raise CodesError(f"codes between {low} and {high}; this codebook has entries 0 to {num_tokens - 1}")
