"""Training the diffusion decoder: codes, embedded by a frozen image tokenizer, back to the pictures they came from.

As DALL-3's image_gumbel_train, and with some conditions withheld for classifier-free guidance (arXiv:2207.12598).

Shapes: B batch, H W picture in pixels, h w grid of codes, D width of the codebook.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle3.checkpoint import Checkpoint, checkpoint_of
from dalle3.config import option
from dalle3.errors import ConfigError
from dalle3.models.decoder import DecoderConfig, DiffusionDecoder, enlarged
from dalle3.models.image_tokenizer import ImageTokenizer
from dalle3.train.tasks.denoising import Condition, DenoisingConfig, DenoisingObjective, DenoisingTask
from dalle3.train.tasks.misreading import codes_of_elsewhere, misread
from diffusion.process import Network, Process

TOLD = ("embeddings", "low_res")  # of a condition, what the network itself takes


@dataclass(frozen=True, kw_only=True)
class DiffusionTaskConfig(DenoisingConfig):
    """How a diffusion decoder is trained."""

    emb_dropout: float = option(
        0.1, help="part of the pictures whose codes are withheld, which --guidance_scale of decode.py needs"
    )
    code_noise: float = option(
        0.0,
        help="read up to this part of every picture's codes wrongly, so that the decoder mends what a DALLE drew; "
        "0: none",
    )
    crop: int | None = option(
        None,
        help="train on a random part of each picture, so many pixels a side, at whole codes: the decoder of large "
        "pictures at the price of small ones (default: the whole picture)",
    )

    def __post_init__(self) -> None:
        """Raises ConfigError unless the parts are in [0, 1)."""
        for name in ("emb_dropout", "code_noise"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")


class DecoderObjective(DenoisingObjective):
    """The loss of a diffusion decoder."""

    network: DiffusionDecoder

    def bind(self, condition: Condition) -> Network:
        """The decoder told what `DiffusionDecoder.conditions` gave, but where (B,) says that it is withheld."""
        told = {name: condition[name] for name in TOLD if name in condition}
        if self.network.config.null_embedding:
            told = self.network.withheld(told, condition["withheld"])
        return lambda x, t: self.network(x, t, **told)

    def emphasis(self, x: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """As `DenoisingObjective.emphasis`: with a spread, errors count by what the network itself puts out."""
        if self.network.settings.spread is None:
            return super().emphasis(x, timesteps, condition)
        told = self.network.withheld({"low_res": condition["low_res"]}, condition["withheld"])
        power = 1 if self.process.config.loss == "l1" else 2
        return self.network.scale(x, told["low_res"], timesteps).flatten() ** -power


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
        timesteps = config.timesteps(model.settings)
        super().__init__(model, DecoderObjective(model, process, timesteps), held_out=held_out)
        self.config = config
        assert isinstance(codec, nn.Module)
        self.codec = codec.eval().requires_grad_(False)
        self._codec_checkpoint = checkpoint_of(codec)

    def condition(self, images: Tensor, *, rng: torch.Generator | None) -> Condition:
        """What the decoder is told of pictures (B, 3, H, W) in [0, 1], their codes, and which are withheld (B,).

        Args:
            rng: None tells all there is to know, and truly.
        """
        codes = self.codes(images)
        withheld = torch.zeros(len(images), dtype=torch.bool)
        if rng is not None:
            withheld = torch.rand(len(images), generator=rng) < self.config.emb_dropout
            if noise := self.config.code_noise:
                codes = misread(codes, codes_of_elsewhere(codes, rng=rng), noise, rng=rng)
        told = self.model.conditions(self.codec, codes)
        return {**told, "withheld": withheld.to(images.device), "codes": codes}

    def part(self, images: Tensor, condition: Condition, *, rng: torch.Generator) -> tuple[Tensor, Condition]:
        """The same random part of every map that belongs to a picture, beginning and ending with a whole code."""
        if self.config.crop is None:
            return images, condition
        grid = condition["codes"].shape[-1]
        side = self.config.crop // self.model.settings.pixels_per_code
        corners = torch.randint(grid - side + 1, (len(images), 2), generator=rng).tolist()
        maps = {name: told for name, told in condition.items() if name != "withheld"}
        parts = {name: cut(told, corners, part=side, of=grid) for name, told in maps.items()}
        return cut(images, corners, part=side, of=grid), {**condition, **parts}

    def codes(self, images: Tensor) -> Tensor:
        """Codes (B, h, w) of pictures (B, 3, H, W) in [0, 1], made as small as the image tokenizer reads them."""
        shrunk = self.model.settings.pixels_per_code // self.codec.factor
        return self.codec.encode(shrink(images, shrunk))

    def baseline(self, condition: Condition) -> Tensor:
        """The image tokenizer's own pictures, stretched to the decoder's size."""
        return enlarged(self.codec, condition["codes"], self.model.settings.pixels_per_code)

    def checkpoint(self, state: dict[str, Tensor]) -> Checkpoint:
        """The decoder with its image tokenizer, so that the folder alone can draw codes."""
        found = super().checkpoint(state)
        found.codec = self._codec_checkpoint
        return found


def cut(maps: Tensor, corners: list[list[int]], *, part: int, of: int) -> Tensor:
    """Squares (B, ..., s, s) of maps (B, ..., S, S) of whatever resolution.

    Args:
        maps: S is a multiple of `of`.
        corners: top and left of each square, in parts of `of`.
        part: its side, in the same.
        of: what the side of a map is counted as.
    """
    unit = maps.shape[-1] // of
    return torch.stack(
        [
            one[..., top * unit : (top + part) * unit, left * unit : (left + part) * unit]
            for one, (top, left) in zip(maps, corners, strict=True)
        ]
    )


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
    if config.pixels_per_code < codec.factor or config.pixels_per_code % codec.factor:
        raise ConfigError(
            f"{len(unet.widths)} levels make {config.pixels_per_code} pixels of a code, but the image tokenizer reads "
            f"{codec.factor}; the first must be a multiple of the second: each level of channel_mult doubles it"
        )
    stride = 2 * config.pixels_per_code
    if unet.image_size % stride:
        raise ConfigError(f"image_size is {unet.image_size}; {len(unet.widths)} levels need a multiple of {stride}")
    if task.crop is not None and (task.crop % stride or not stride <= task.crop <= unet.image_size):
        raise ConfigError(
            f"crop is {task.crop}; it must be a multiple of {stride}, which {len(unet.widths)} levels need, and at "
            f"most image_size, {unet.image_size}"
        )
    if task.emb_dropout and not unet.null_embedding:
        raise ConfigError(
            f"emb_dropout is {task.emb_dropout}, which needs null_embedding; pass --null_embedding, or --emb_dropout 0"
        )
