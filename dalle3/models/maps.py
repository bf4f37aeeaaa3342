"""What captions lay under the picture: maps in a few channels, added to the embeddings that codes are predicted from.

Shapes: B batch, L caption tokens, M picture positions, C channels of a map, D width, E width of CLIP's space.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle3.errors import ConfigError
from dalle3.models.clip_text import ClipText

if TYPE_CHECKING:
    from dalle3.models.dalle import DalleConfig

MAP_SCALE = 4.0  # deviation of the weights behind the maps: large, so that their numbers, which start at 0, count soon
HIDDEN_MULT = 4  # hidden numbers of `ClipMaps` for each of D
READING_NOISE = 0.5  # deviation of what blurs a reading in training, whose numbers have a mean square of 1


class CaptionMaps(nn.Module):
    """A map over the picture for each word: what stands where when the word is in the caption, in a few channels.

    A transformer has to work out from a word and a place what is there, with weights that all words and places share;
    here each couple has numbers of its own, which it learns from a few examples. The maps of a caption's words are
    added up. They start at nothing, so a model that gets them starts as it was.
    """

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        channels, self.shape = config.caption_maps, (config.image_seq_len, config.caption_maps)
        self.words = nn.Parameter(torch.zeros(config.num_text_tokens, config.image_seq_len * channels))
        self.to_dim = nn.Linear(channels, config.dim, bias=False)
        nn.init.normal_(self.to_dim.weight, std=MAP_SCALE)

    def forward(self, text: Tensor) -> Tensor:
        """What captions (B, L) add where each code is predicted, (B, M, D); blanks add nothing."""
        added = F.embedding_bag(text, self.words, mode="sum", padding_idx=0)
        return self.to_dim(added.unflatten(-1, self.shape))


class ClipMaps(nn.Module):
    """A map over the picture for the whole caption, from CLIP's reading of it: a blurred guess, in a few channels.

    CLIP has seen what pictures of a caption have in common, so captions that it reads alike lay similar maps, also
    those that training never had. Its reading stays as it is, and the map starts at nothing.
    """

    def __init__(self, config: DalleConfig) -> None:
        """Raises ConfigError where there is no CLIP to read captions."""
        super().__init__()
        if config.clip_text is None:
            raise ConfigError(f"clip_maps is {config.clip_maps}, and there is no clip_text to read captions with")
        channels, hidden = config.clip_maps, HIDDEN_MULT * config.dim
        self.shape = (config.image_seq_len, channels)
        self.reader = ClipText(config.clip_text)
        self.first = nn.Linear(config.clip_text.embed_dim, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.lay = nn.Linear(hidden, config.image_seq_len * channels)
        self.to_dim = nn.Linear(channels, config.dim, bias=False)
        nn.init.zeros_(self.to_dim.weight)

    def forward(self, text: Tensor) -> Tensor:
        """What captions (B, L) add where each code is predicted, (B, M, D); the null caption adds nothing."""
        some = (text != 0).any(-1)[:, None, None]
        return self.to_dim(self.channels(text)) * some

    def channels(self, text: Tensor) -> Tensor:
        """The maps (B, M, C) of captions (B, L)."""
        x = F.gelu(self.first(self._read(text)))
        x = x + F.gelu(self.second(x))
        return self.lay(x).unflatten(-1, self.shape)

    def _read(self, text: Tensor) -> Tensor:
        """CLIP's readings (B, E), their numbers with a mean square of 1; blurred while training, each by a chance."""
        reading = self.reader(text)
        length = math.sqrt(reading.shape[-1])
        if self.training:
            blur = READING_NOISE * torch.rand(len(reading), 1, device=reading.device)
            reading = F.normalize(reading + blur / length * torch.randn_like(reading), dim=-1)
        return reading * length
