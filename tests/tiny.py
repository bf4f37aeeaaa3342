"""A whole model with random weights, small enough to draw in a tenth of a second."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from dalle3.checkpoint import Checkpoint, save_checkpoint
from dalle3.models.clip import Clip, ClipConfig
from dalle3.models.dalle import Dalle, DalleConfig
from dalle3.models.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle3.tokenizers.huggingface import HuggingFace

WORDS = ("[UNK]", "a", "red", "blue", "circle", "square", "large", "small", "and", "star", "great")
GRID, CODES = 4, 16


def tokenizer() -> HuggingFace:
    """One id for each of `WORDS`."""
    whole = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    return HuggingFace(whole)


def codec(*, num_tokens: int = CODES, seed: int = 0) -> Checkpoint:
    config = DiscreteVAEConfig(image_size=16, num_tokens=num_tokens, codebook_dim=8, num_layers=2, hidden_dim=8)
    return checkpoint("discrete_vae", config, DiscreteVAE, seed=seed)


def dalle(*, image_codec: Checkpoint | None) -> Checkpoint:
    config = DalleConfig(
        num_text_tokens=len(WORDS),
        text_seq_len=8,
        num_image_tokens=CODES,
        image_grid=GRID,
        dim=16,
        depth=2,
        heads=2,
        dim_head=8,
    )
    found = checkpoint("dalle", config, Dalle)
    found.codec = image_codec
    return found


def clip() -> Checkpoint:
    config = ClipConfig(
        embed_dim=8,
        image_size=16,
        patch_size=8,
        vision_width=8,
        vision_layers=1,
        vision_heads=1,
        context_length=8,
        vocab_size=len(WORDS),
        text_width=8,
        text_layers=1,
        text_heads=1,
        text_end="last_id",
    )
    return checkpoint("clip", config, Clip)


def checkpoint(kind: str, config, network: type[nn.Module], *, seed: int = 0) -> Checkpoint:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Checkpoint(kind=kind, config=config, state=network(config).state_dict())


def write_model(folder: Path) -> Path:
    """A DALLE with its tokenizer, its image tokenizer in `codec` and a CLIP in `clip`."""
    words = tokenizer()
    save_checkpoint(dalle(image_codec=codec()), folder, tokenizer=words)
    save_checkpoint(clip(), folder / "clip", tokenizer=words)
    return folder
