"""Training the DALLE: captions and the codes of their pictures.

Shapes: B batch, L caption tokens, h w grid of codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dalle3.checkpoint import Checkpoint, checkpoint_of, describe_codec
from dalle3.config import option
from dalle3.data.codes import Codec
from dalle3.data.loader import Batch
from dalle3.decoding import Decoder
from dalle3.errors import ConfigError
from dalle3.models.dalle import Dalle, DalleConfig
from dalle3.models.dalle_lora import DalleLoraConfig, adapted
from dalle3.models.image_tokenizer import ImageTokenizer
from dalle3.nn.lora import Adapters
from dalle3.sampling import Sampling
from dalle3.tokenizers.base import Tokenizer
from dalle3.train.task import Metrics, Preview, to_pil, to_unit
from dalle3.train.tasks.captions import caption_rows, drop_rows
from dalle3.train.tasks.misreading import any_codes, misread

PREVIEW_SAMPLING = Sampling(top_p=0.9)  # how the pictures that show its progress are drawn


@dataclass(frozen=True, kw_only=True)
class DalleTaskConfig:
    """What a DALLE is shown of its captions."""

    caption_dropout: float = option(0.1, help="part of the captions left out, which guidance (--cond_scale) needs")
    truncate_captions: bool = option(False, help="cut captions that are too long instead of stopping")
    words_dropout: float = option(
        0.0, help="part of the captions of which only --clip_maps tell, so that more depends on these"
    )
    code_noise: float = option(
        0.0,
        help="read up to this part of every picture's codes wrongly, so that more depends on the caption; 0: none",
    )

    def __post_init__(self) -> None:
        """Raises ConfigError unless the parts are in [0, 1]."""
        for name in ("caption_dropout", "words_dropout", "code_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")


class DalleObjective(nn.Module):
    """The loss of a DALLE."""

    def __init__(self, dalle: Dalle) -> None:
        super().__init__()
        self.dalle = dalle

    def forward(
        self, text: Tensor, codes: Tensor, read: Tensor | None = None, meant: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        """The weighted loss of captions (B, L) and codes (B, h, w), and the two it is made of, in nats a token."""
        loss, parts = self.dalle.loss(text, codes, read, meant)
        return loss, {f"{name}_loss": part.detach() for name, part in parts.items()}


class DalleTask:
    """A DALLE, the tokenizers whose ids it speaks, and pictures or codes made by that image tokenizer.

    Raises:
        ConfigError: the model's vocabularies or grid are not those of its tokenizers, or words are left out of
            captions that nothing else tells.
    """

    def __init__(self, dalle: Dalle, codec: ImageTokenizer, tokenizer: Tokenizer, config: DalleTaskConfig) -> None:
        check_vocabularies(dalle.config, codec, tokenizer)
        if config.words_dropout and not dalle.config.clip_maps:
            raise ConfigError("words_dropout leaves captions to --clip_maps, and this DALLE has none")
        self.model: nn.Module = dalle
        self.dalle, self.tokenizer, self.config = dalle, tokenizer, config
        self.sampling = PREVIEW_SAMPLING
        self.objective = DalleObjective(dalle)
        assert isinstance(codec, nn.Module)
        self.codec = codec.eval().requires_grad_(False)
        self.codec_checkpoint = checkpoint_of(codec)

    @property
    def tokens_per_sample(self) -> int:
        """Of caption and picture, the first of which stands for <bos>."""
        return self.dalle.config.text_len + self.dalle.config.image_seq_len

    def prepare(self, batch: Batch, *, step: int, rng: torch.Generator) -> dict[str, Any]:
        """Captions, some of them or of their words left out, and codes, some of them read wrongly."""
        device, config = next(self.dalle.parameters()).device, self.dalle.config
        rows = caption_rows(self.tokenizer, batch.captions, config.text_seq_len, truncate=self.config.truncate_captions)
        rows = drop_rows(rows, self.config.caption_dropout, rng=rng)
        inputs = {"codes": self.codes(batch.content.to(device))}
        if self.config.words_dropout:
            inputs["meant"] = rows.to(device)
            rows = drop_rows(rows, self.config.words_dropout, rng=rng)
        inputs["text"] = rows.to(device)
        if noise := self.config.code_noise:
            others = any_codes(inputs["codes"], config.num_image_tokens, rng=rng)
            inputs["read"] = misread(inputs["codes"], others, noise, rng=rng)
        return inputs

    def codes(self, content: Tensor) -> Tensor:
        """Codes (B, h, w) of pictures uint8 (B, 3, H, W), or of codes the same."""
        return content if content.ndim == 3 else self.codec.encode(to_unit(content, content.device))

    def preview(self, batch: Batch, *, rng: torch.Generator) -> Preview:
        """Pictures as the image tokenizer renders them, above what the model draws for their captions."""
        seen = self.codec.decode(self.codes(batch.content.to(self.codec_device)))
        drawn = self.codec.decode(self._draw(batch.captions, int(torch.randint(2**31, (), generator=rng))))
        return Preview(images=to_pil(torch.cat([seen, drawn])), columns=len(batch.captions))

    def _draw(self, captions: tuple[str, ...], seed: int) -> Tensor:
        rows = caption_rows(self.tokenizer, captions, self.dalle.config.text_seq_len, truncate=True)
        decoder = Decoder(self.dalle)
        prefix, seeds = decoder.read(rows, cond_scale=self.sampling.cond_scale), range(seed, seed + len(rows))
        return decoder.draw(prefix, self.sampling, seed=seeds, indices=[0]).to(self.codec_device)

    @property
    def codec_device(self) -> torch.device:
        """Where the image tokenizer is."""
        return next(self.codec.parameters()).device

    def checkpoint(self, state: dict[str, Tensor]) -> Checkpoint:
        """The DALLE with its image tokenizer, so that the folder alone can draw."""
        return Checkpoint(
            kind="dalle",
            config=self.dalle.config,
            state=state,
            codec=self.codec_checkpoint,
            codec_info=self._codec_info(),
        )

    def check_codes_of(self, made_by: Codec) -> None:
        """Raises ConfigError unless codes come from this image tokenizer."""
        ours = self._codec_info()
        if made_by != Codec(**ours):
            raise ConfigError(
                f"the codes were made by {made_by}, and --vae_path is {ours}; pass the one that made them"
            )

    def _codec_info(self) -> dict[str, Any]:
        return describe_codec(self.codec_checkpoint, grid=self.dalle.config.image_grid)


class DalleLoraTask(DalleTask):
    """Adapters beside a DALLE that stays as it is, on what `DalleTask` is trained on.

    Raises:
        ConfigError: as `DalleTask`, and where an adapter is wanted of no layer there is.
    """

    def __init__(
        self,
        dalle: Dalle,
        codec: ImageTokenizer,
        tokenizer: Tokenizer,
        config: DalleTaskConfig,
        *,
        lora: DalleLoraConfig,
    ) -> None:
        super().__init__(adapted(dalle, lora), codec, tokenizer, config)
        self.model, self.lora = Adapters(dalle), lora

    def checkpoint(self, state: dict[str, Tensor]) -> Checkpoint:
        """The adapters alone; DALLE and image tokenizer are where they were."""
        return Checkpoint(kind="dalle_lora", config=self.lora, state=state, codec_info=self._codec_info())


def check_vocabularies(config: DalleConfig, codec: ImageTokenizer, tokenizer: Tokenizer) -> None:
    """Raises ConfigError unless a DALLE of `config` speaks the ids of both tokenizers."""
    if config.num_image_tokens != codec.num_tokens:
        raise ConfigError(
            f"num_image_tokens is {config.num_image_tokens}, but the image tokenizer has {codec.num_tokens} entries"
        )
    if config.num_text_tokens < tokenizer.vocab_size:
        raise ConfigError(
            f"num_text_tokens is {config.num_text_tokens}, but the text tokenizer has {tokenizer.vocab_size} entries"
        )
