"""The half of a CLIP that reads captions, at rest inside another model, without a package of others.

Shapes: B batch, L caption tokens, W width of the text transformer, E width of CLIP's space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle3.config import option
from dalle3.errors import ConfigError
from dalle3.models.clip import ClipConfig

FF_MULT = 4


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
    """The sizes of a CLIP's text transformer, under the names of `ClipConfig`."""

    embed_dim: int = option(help="width of the space pictures and captions share")
    context_length: int = option(help="longest caption, in tokens")
    vocab_size: int = option(help="entries of the text vocabulary")
    text_width: int = option(help="width of the text transformer")
    text_layers: int = option(help="layers of the text transformer")
    text_heads: int = option(help="attention heads of the text transformer")
    activation: Literal["quick_gelu", "gelu"] = option("quick_gelu", help="activation of the feed-forwards")


class ClipText(nn.Module):
    """Reads captions as the CLIP does whose weights it has, under that CLIP's names.

    They are buffers: saved, moved and cast with the model around them, and no optimizer finds them.
    """

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = _TextModel(config)
        self.text_projection = nn.Linear(config.text_width, config.embed_dim, bias=False)
        _lay_to_rest(self)

    @torch.no_grad()
    def forward(self, text: Tensor) -> Tensor:
        """Unit vectors (B, E) of captions (B, L), 0 where blank, read out at their last id."""
        last = (torch.arange(text.shape[1], device=text.device) * (text != 0)).amax(dim=1)
        with torch.autocast(text.device.type, enabled=False):  # it is small, and its reading is to be that of the CLIP
            read = self.text_model(text)[torch.arange(len(text), device=text.device), last]
            return F.normalize(self.text_projection(read), dim=-1)


class _TextModel(nn.Module):
    """The transformer."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        width = config.text_width
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": nn.Embedding(config.vocab_size, width),
                "position_embedding": nn.Embedding(config.context_length, width),
            }
        )
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(_Layer(config) for _ in range(config.text_layers))})
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, text: Tensor) -> Tensor:
        """States (B, L, W) of captions (B, L)."""
        places = torch.arange(text.shape[1], device=text.device)
        x = self.embeddings["token_embedding"](text) + self.embeddings["position_embedding"](places)
        for layer in self.encoder["layers"].children():
            x = layer(x)
        return self.final_layer_norm(x)


class _Layer(nn.Module):
    """Causal attention and a feed-forward, each behind its norm."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        width = config.text_width
        self.heads, self.quick = config.text_heads, config.activation == "quick_gelu"
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width) for name in ("q", "k", "v", "out")})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, FF_MULT * width), "fc2": nn.Linear(FF_MULT * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """Transforms (B, L, W)."""
        normed, attention = self.layer_norm1(x), self.self_attn
        q, k, v = (
            attention[name](normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + attention["out_proj"](found)
        hidden = self.mlp["fc1"](self.layer_norm2(x))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick else F.gelu(hidden)
        return x + self.mlp["fc2"](hidden)


def text_half(config: ClipConfig, state: Mapping[str, Tensor]) -> tuple[ClipTextConfig, dict[str, Tensor]]:
    """Of a CLIP, the configuration and the weights of what reads captions.

    Raises:
        ConfigError: it reads captions out at a token of its own, which those of a DALLE do not have.
    """
    if config.text_end != "last_id":
        raise ConfigError(
            "this CLIP reads a caption at an end-of-text token of its own; clip_maps takes one that was trained by "
            "`dalle3 train clip` with the DALLE's text tokenizer"
        )
    names = {field.name for field in fields(ClipTextConfig)}
    sizes = {name: getattr(config, name) for name in names}
    return ClipTextConfig(**sizes), {name: tensor for name, tensor in state.items() if name.startswith("text_")}


def _lay_to_rest(module: nn.Module) -> None:
    """Makes every parameter a buffer."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
