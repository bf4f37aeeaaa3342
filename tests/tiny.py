"""A whole model with random weights, small enough to draw in a tenth of a second."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from dalle3.checkpoint import Checkpoint, save_checkpoint
from dalle3.models.clip import Clip, ClipConfig
from dalle3.models.dalle import Dalle, DalleConfig
from dalle3.models.decoder import DecoderConfig, DiffusionDecoder, Upsampler, UpsamplerConfig
from dalle3.models.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle3.tokenizers.huggingface import HuggingFace
from diffusion.process import ProcessConfig
from diffusion.unet import UNetConfig

WORDS = ("[UNK]", "a", "red", "blue", "circle", "square", "large", "small", "and", "star", "great")
GRID, CODES = 4, 16

CLIP = ClipConfig(  # that reads a caption at its highest id, as OpenAI's do
    embed_dim=8,
    image_size=16,
    patch_size=8,
    vision_width=16,
    vision_layers=1,
    vision_heads=2,
    context_length=6,
    vocab_size=20,
    text_width=16,
    text_layers=1,
    text_heads=2,
    text_end="highest_id",
)


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


def unet(**changes) -> UNetConfig:
    """A small layout of stride 8: every code becomes 4 pixels a side."""
    sizes = {"num_channels": 32, "num_res_blocks": 1, "attention_resolutions": (), "channel_mult": (1, 1, 1, 1)}
    return UNetConfig(**{"image_size": 16, **sizes, **changes})


def decoder(**changes) -> Checkpoint:
    """A decoder of the codes of `codec`, as large as its pictures; it can be guided."""
    layout = unet(**{"emb_input_dims": 8, "emb_output_dims": 32, "null_embedding": True, **changes})
    config = DecoderConfig(unet=layout, process=ProcessConfig(noise_schedule="cosine"), respacing="angle4")
    return noisy(checkpoint("unet", config, DiffusionDecoder))


def upsampler(**changes) -> Checkpoint:
    """Pictures to four times their size, any multiple of 2."""
    layout = unet(**{"channel_mult": (1, 1), **changes})
    config = UpsamplerConfig(unet=layout, process=ProcessConfig(), respacing="angle2", small_size=4)
    return noisy(checkpoint("super_res_unet", config, Upsampler))


def noisy(found: Checkpoint) -> Checkpoint:
    """The checkpoint with weights nowhere zero, as they are after training."""
    rng = torch.Generator().manual_seed(0)
    for tensor in found.state.values():
        tensor.add_(0.05 * torch.randn(tensor.shape, generator=rng))
    return found


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
