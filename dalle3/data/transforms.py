"""From a picture of any size to the square a network takes."""

from __future__ import annotations

import contextlib
import io
import math
import struct
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from dalle3.config import option
from dalle3.data.base import BrokenSampleError
from dalle3.errors import ConfigError

USUAL = ("JPEG", "PNG", "WEBP", "BMP")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How pictures are cut to a square."""

    random_resize_crop_lower_ratio: float = option(
        0.75, help="smallest part of the largest square that a random crop keeps; 1 is the centre crop"
    )
    flip: bool = option(False, help="mirror half of the pictures; wrong where captions say left and right")
    shift: int = option(
        0, help="move pictures by up to so many pixels each way, edges repeated: unlike a crop it softens nothing"
    )

    def __post_init__(self) -> None:
        """Raises ConfigError unless the ratio is in (0, 1] and the shift at least 0."""
        if self.shift < 0:
            raise ConfigError(f"shift is {self.shift}; it must be at least 0")
        if not 0 < self.random_resize_crop_lower_ratio <= 1:
            found = self.random_resize_crop_lower_ratio
            raise ConfigError(f"random_resize_crop_lower_ratio is {found}; it must be above 0 and at most 1")


class Crop:
    """Turns a picture into uint8 (3, image_size, image_size)."""

    def __init__(self, image_size: int, config: CropConfig) -> None:
        self.image_size, self.config = image_size, config

    @property
    def at_least(self) -> int:
        """The shorter side in pixels from which a picture may be decoded smaller: the crop is twice what it becomes."""
        return math.ceil(2 * self.image_size / math.sqrt(self.config.random_resize_crop_lower_ratio))

    def __call__(self, picture: Image.Image, rng: torch.Generator) -> Tensor:
        left, top, right, bottom = crop_box(
            picture.size, lower_ratio=self.config.random_resize_crop_lower_ratio, rng=rng
        )
        part = torch.from_numpy(np.array(picture, np.uint8))[None, top:bottom, left:right].permute(0, 3, 1, 2)
        size = (self.image_size, self.image_size)
        # Pillow's bicubic within 1 of 255, and 2 at the edge, behind which Pillow looks; in a third of the time
        square = F.interpolate(part, size=size, mode="bicubic", antialias=True)[0].contiguous()
        if self.config.shift:
            square = shifted(square, *torch.randint(-self.config.shift, self.config.shift + 1, (2,), generator=rng))
        mirrored = self.config.flip and torch.rand((), generator=rng).item() < 0.5
        return square.flip(-1) if mirrored else square


def shifted(square: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """A picture (C, S, S) moved by whole pixels; what comes into it repeats its edge."""
    places = torch.arange(square.shape[-1])
    rows, columns = ((places - by).clamp(0, len(places) - 1) for by in (down, right))
    return square[:, rows[:, None], columns]


def crop_box(size: tuple[int, int], *, lower_ratio: float, rng: torch.Generator) -> tuple[int, int, int, int]:
    """A square of a picture of `size` (width, height): left, top, right, bottom.

    Its area is uniform in [lower_ratio, 1] of the largest square, its place uniform; at 1 it is the central square.
    """
    width, height = size
    if lower_ratio >= 1:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side
    area, x, y = torch.rand(3, generator=rng).tolist()
    side = max(1, round(min(width, height) * math.sqrt(lower_ratio + (1 - lower_ratio) * area)))
    left, top = round(x * (width - side)), round(y * (height - side))
    return left, top, left + side, top + side


def decode_picture(content: bytes, *, where: str, at_least: int | None = None) -> Image.Image:
    """The RGB picture in a file's bytes; what is transparent is shown on white.

    Args:
        at_least: decode a JPEG at a half, a quarter or an eighth of its size where both sides stay as long in pixels,
            which takes a third of the time or less.
    Raises:
        BrokenSampleError: it is not a whole picture that Pillow can read.
    """
    try:
        with _open(io.BytesIO(content)) as opened:
            if at_least:
                opened.draft("RGB", (at_least, at_least))
            opened.load()
            return to_rgb(upright(opened))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise BrokenSampleError(f"{where}: not a readable picture ({reason})") from None


def _open(file: io.BytesIO) -> Image.Image:
    """Tries the usual formats first: Pillow would begin every one of a dozen decoders before it comes to WebP's."""
    try:
        return Image.open(file, formats=USUAL)
    except UnidentifiedImageError:
        file.seek(0)
        return Image.open(file)


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as the camera says in its EXIF."""
    if "exif" not in picture.info:
        return picture
    with contextlib.suppress(SyntaxError, ValueError, TypeError, struct.error):  # an EXIF that is broken says nothing
        return ImageOps.exif_transpose(picture)
    return picture


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB; without a white ground, a transparent one would show colours nobody sees."""
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    layered = picture.convert("RGBA")
    ground = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(ground, layered).convert("RGB")


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(picture, np.uint8)).permute(2, 0, 1).contiguous()


def keep(codes: Tensor, rng: torch.Generator) -> Tensor:
    """The codes as they are: pre-encoded pictures were cut when they were encoded."""
    return codes
