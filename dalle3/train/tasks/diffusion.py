"""Training the diffusion decoder: codes, embedded by a frozen image tokenizer, back to the pictures they came from.

As DALL-3's image_gumbel_train, and with some conditions withheld for classifier-free guidance (arXiv:2207.12598).

Shapes: B batch, H W picture in pixels, h w grid of codes, D width of the codebook.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle3.checkpoint import Checkpoint
from dalle3.config import option
from dalle3.errors import ConfigError
from dalle3.models.decoder import DecoderConfig, DiffusionDecoder
from dalle3.models.image_tokenizer import ImageTokenizer
from dalle3.train.tasks.denoising import Condition, DenoisingConfig, DenoisingObjective, DenoisingTask
from diffusion.process import Network, Process


@dataclass(frozen=True, kw_only=True)
class DiffusionTaskConfig(DenoisingConfig):
    """How a diffusion decoder is trained."""

    emb_dropout: float = option(
        0.1, help="part of the pictures whose codes are withheld, which --guidance_scale of decode.py needs"
    )

    def __post_init__(self) -> None:
        """Raises ConfigError unless the part is in [0, 1)."""
        if not 0 <= self.emb_dropout < 1:
            raise ConfigError(f"emb_dropout is {self.emb_dropout}; it must be at least 0 and below 1")


class DecoderObjective(DenoisingObjective):
    """The loss of a diffusion decoder."""

    network: DiffusionDecoder

    def bind(self, condition: Condition) -> Network:
        """The decoder of embeddings (B, D, h, w); where (B,) says they are withheld, of the null embedding."""
        embeddings, withheld = condition["embeddings"], condition["withheld"]
        if self.network.config.null_embedding:
            nothing = self.network.null_embeddings(embeddings)
            embeddings = torch.where(withheld[:, None, None, None], nothing, embeddings)
        return lambda x, t: self.network(x, t, embeddings=embeddings)


class DiffusionTask(DenoisingTask):
    """A diffusion decoder and the image tokenizer whose codes it reads.

    Raises:
        ConfigError: the decoder cannot take these codes.
    """

    rough = "codes"
    model: DiffusionDecoder

    def __init__(
        self,
        model: DiffusionDecoder,
        codec: ImageTokenizer,
        config: DiffusionTaskConfig,
        *,
        held_out: Tensor | None = None,
    ) -> None:
        check_codec(model.settings, codec, config)
        process = Process(model.settings.process)
        super().__init__(model, DecoderObjective(model, process, config.timesteps(process)), held_out=held_out)
        self.config = config
        assert isinstance(codec, nn.Module)
        self.codec = codec.eval().requires_grad_(False)
        self._codec_checkpoint = Checkpoint(kind=codec.kind, config=codec.config, state=codec.state_dict())

    def condition(self, images: Tensor, *, rng: torch.Generator | None) -> Condition:
        """The embeddings (B, D, h, w) of the codes of pictures (B, 3, H, W) in [0, 1], and which are withheld (B,)."""
        codes = self.codes(images)
        withheld = torch.zeros(len(images), dtype=torch.bool)
        if rng is not None:
            withheld = torch.rand(len(images), generator=rng) < self.config.emb_dropout
        return {
            "embeddings": self.codec.embed(codes).float(),
            "withheld": withheld.to(images.device),
            "codes": codes,
        }

    def codes(self, images: Tensor) -> Tensor:
        """Codes (B, h, w) of pictures (B, 3, H, W) in [0, 1], made as small as the image tokenizer reads them."""
        shrunk = self.model.settings.pixels_per_code // self.codec.factor
        return self.codec.encode(shrink(images, shrunk))

    def baseline(self, condition: Condition) -> Tensor:
        """The image tokenizer's own pictures, stretched to the decoder's size."""
        pictures = self.codec.decode(condition["codes"])
        side = pictures.shape[-1] * self.model.settings.pixels_per_code // self.codec.factor
        return F.interpolate(pictures, (side, side), mode="bicubic", antialias=True).clamp(0, 1)

    def checkpoint(self, state: dict[str, Tensor]) -> Checkpoint:
        """The decoder with its image tokenizer, so that the folder alone can draw codes."""
        found = super().checkpoint(state)
        found.codec = self._codec_checkpoint
        return found


def shrink(images: Tensor, times: int) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] as (B, 3, H / times, W / times): what Pillow's bicubic filter would make."""
    if times == 1:
        return images
    size = (images.shape[-2] // times, images.shape[-1] // times)
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def check_codec(config: DecoderConfig, codec: ImageTokenizer, task: DiffusionTaskConfig) -> None:
    """Raises ConfigError unless a decoder of `config` can be trained on the codes of `codec`."""
    unet = config.unet
    if unet.emb_input_dims != codec.embed_dim:
        raise ConfigError(
            f"emb_input_dims is {unet.emb_input_dims}, but codes of this image tokenizer become {codec.embed_dim} "
            "channels; leave it out"
        )
    if config.pixels_per_code % codec.factor:
        raise ConfigError(
            f"{len(unet.widths)} levels make {config.pixels_per_code} pixels of a code, but the image tokenizer reads "
            f"{codec.factor}; the first must be a multiple of the second: each level of channel_mult doubles it"
        )
    stride = 2 * config.pixels_per_code
    if unet.image_size % stride:
        raise ConfigError(f"image_size is {unet.image_size}; {len(unet.widths)} levels need a multiple of {stride}")
    if task.emb_dropout and not unet.null_embedding:
        raise ConfigError(
            f"emb_dropout is {task.emb_dropout}, which needs null_embedding; pass --null_embedding, or --emb_dropout 0"
        )
