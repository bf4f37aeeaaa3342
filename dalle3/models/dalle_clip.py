"""The CLIP that dalle-pytorch trains beside its DALL-E, to rank pictures: two small transformers and their means.

Shapes: B batch, N text positions, P patches, E width of the shared space.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle3.config import option
from dalle3.errors import ConfigError
from dalle3.models.clip import fit
from dalle3.nn.attention import Attention
from dalle3.nn.feedforward import GatedFeedForward
from dalle3.nn.transformer import Branch, Transformer, layer_scale

DIM_HEAD = 64  # dalle-pytorch's, in every CLIP it can build


@dataclasses.dataclass(frozen=True, kw_only=True)
class DalleClipConfig:
    """The sizes of a CLIP of dalle-pytorch; the defaults are its own."""

    embed_dim: int = option(512, help="width of the space pictures and captions share")
    image_size: int = option(256, help="side of the picture the network reads, in pixels")
    patch_size: int = option(32, help="side of a patch, in pixels")
    vision_width: int = option(512, help="width of the picture transformer")
    vision_layers: int = option(6, help="layers of the picture transformer")
    vision_heads: int = option(8, help="attention heads of the picture transformer, 64 wide each")
    context_length: int = option(256, help="longest caption, in tokens")
    vocab_size: int = option(10000, help="entries of the text vocabulary")
    text_width: int = option(512, help="width of the text transformer")
    text_layers: int = option(6, help="layers of the text transformer")
    text_heads: int = option(8, help="attention heads of the text transformer, 64 wide each")

    def __post_init__(self) -> None:
        """Raises ConfigError where patches do not fill the picture."""
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ConfigError(f"a picture of {self.image_size} pixels cannot be cut into patches of {self.patch_size}")


class DalleClip(nn.Module):
    """A picture's and a caption's features are the means over their positions, projected, at unit length."""

    def __init__(self, config: DalleClipConfig) -> None:
        super().__init__()
        self.config = config
        num_patches = (config.image_size // config.patch_size) ** 2
        self.text_emb = nn.Embedding(config.vocab_size, config.text_width)
        self.text_pos = nn.Embedding(config.context_length, config.text_width)
        self.text_transformer = _transformer(config.text_width, config.text_layers, heads=config.text_heads)
        self.text_projection = nn.Linear(config.text_width, config.embed_dim, bias=False)
        self.patch_emb = nn.Linear(3 * config.patch_size**2, config.vision_width)
        self.patch_pos = nn.Embedding(num_patches, config.vision_width)
        self.vision_transformer = _transformer(config.vision_width, config.vision_layers, heads=config.vision_heads)
        self.visual_projection = nn.Linear(config.vision_width, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.ones(()))

    @property
    def image_size(self) -> int:
        """The side of the picture the network reads, in pixels."""
        return self.config.image_size

    def encode_text(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """Unit vectors (B, E), float32, of captions (B, N).

        Args:
            keep: (B, N) bool, False where a position is padding. Without it padding counts as words, as it
                does where dalle-pytorch ranks what its DALL-E drew.
        """
        x = self.text_transformer(self.text_emb(ids) + self.text_pos.weight[: ids.shape[1]], keep)
        weights = torch.ones_like(ids, dtype=x.dtype) if keep is None else keep.to(x.dtype)
        mean = (x * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        return F.normalize(self.text_projection(mean).float(), dim=-1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Unit vectors (B, E), float32, of pictures (B, 3, H, W) in [0, 1] of any size; differentiable."""
        patches = _patches(fit(pixels, self.image_size), self.config.patch_size).to(self.patch_emb.weight.dtype)
        x = self.vision_transformer(self.patch_emb(patches) + self.patch_pos.weight)
        return F.normalize(self.visual_projection(x.mean(1)).float(), dim=-1)

    def score(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Cosines in [-1, 1], (pictures, captions), of unit vectors (pictures, E) and (captions, E)."""
        return image_features @ text_features.mT


def _patches(pixels: Tensor, size: int) -> Tensor:
    """(B, P, size * size * 3): the patches of (B, 3, S, S) row by row, each row by row with its colours last."""
    grid = pixels.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (B, 3, rows, size, columns, size)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def _transformer(dim: int, depth: int, *, heads: int) -> Transformer:
    return Transformer(
        [
            [
                Branch(fn, pre=nn.LayerNorm(dim), scale=torch.full((dim,), layer_scale(layer)))
                for fn in (Attention(dim, heads, DIM_HEAD), GatedFeedForward(dim, 4 * dim))
            ]
            for layer in range(1, depth + 1)
        ]
    )
