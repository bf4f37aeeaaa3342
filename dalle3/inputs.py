"""What pictures are decoded from: files of codes and pictures, one by one, many, or a folder of them.

Shapes: h w grid of codes, S side of a picture in pixels.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle3.data.transforms import to_rgb, to_tensor, upright
from dalle3.errors import CodesError, ImageError
from dalle3.models.image_tokenizer import ImageTokenizer, check_codes

CODES, PICTURES = (".npy",), (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ADDRESSES = ("http://", "https://")
DECODED = re.compile(r"(.+)-decoded(?:-\d+)?\.png")  # as `output.BesideInputs` names what it adds to a folder
TIMEOUT = 30  # seconds for a picture behind an address


def find_inputs(names: Sequence[str]) -> list[str]:
    """Files and addresses in the order they are named; a folder stands for its .npy files, or else its pictures.

    One that holds neither itself stands for those of the folders in it. Where `generate.py` put both, the pictures were
    made from the codes beside them; and what was decoded from a picture before, x-decoded.png of x.jpg, is left out.

    Raises:
        ImageError: a folder holds neither.
    """
    found: list[str] = []
    for name in names:
        found += _files(Path(name)) if not name.startswith(ADDRESSES) and Path(name).is_dir() else [name]
    return found


def is_codes(name: str) -> bool:
    """Whether `name` is a file of codes; anything else is taken for a picture."""
    return name.lower().endswith(CODES)


def read_codes(name: str, *, num_tokens: int) -> Tensor:
    """The codes (h, w), int64, of a .npy in a file or behind an address.

    They are square, or flat and row by row as `generate.py --output_npy` writes them.

    Raises:
        CodesError: it cannot be read or fetched, is not a whole .npy, not integers, no square number of them, or one
            is outside the codebook.
    """
    try:
        with _open(name) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise CodesError(f"{name}: no such file") from None
    except (OSError, ValueError, MemoryError, TokenError) as error:  # the last three: what a header that lies leads to
        raise CodesError(f"{name} cannot be read: {_reason(error, 'it is not a whole .npy of numbers')}") from None
    if array.dtype.kind not in "iu":
        raise CodesError(f"{name} holds {array.dtype}; codes are integers, as `generate.py --output_npy` writes them")
    codes = torch.from_numpy(array.astype(np.int64))
    side = math.isqrt(codes.numel())
    one_picture = codes.squeeze().shape in ((side**2,), (side, side))
    if not side or not one_picture:
        raise CodesError(
            f"{name} holds {codes.numel()} codes of shape {tuple(codes.shape)}; "
            "expected those of one square picture, such as 256 or 1024"
        )
    codes = codes.reshape(1, side, side)
    try:
        check_codes(codes, num_tokens)
    except CodesError as error:
        raise CodesError(f"{name}: {error}; give the image tokenizer they were made with as --vae_path") from None
    return codes[0]


def read_picture(name: str) -> Image.Image:
    """The RGB picture in a file or behind an address, upright; what is transparent is shown on white.

    Raises:
        ImageError: it cannot be read or fetched.
    """
    try:
        with _open(name) as file, Image.open(file) as opened:
            opened.load()
            return to_rgb(upright(opened))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{name} cannot be read: {_reason(error, 'it is not a whole picture')}") from None


def square(picture: Image.Image, side: int) -> Tensor:
    """The middle of an RGB picture as (1, 3, side, side) in [0, 1].

    Resized by averaging areas, as DALL-3's sample.py and super_res.py do: upsamplers were trained on such pictures.
    """
    width, height = picture.size
    least = min(width, height)
    left, top = (width - least) // 2, (height - least) // 2
    cut = to_tensor(picture.crop((left, top, left + least, top + least))).float() / 255
    return F.interpolate(cut[None], size=(side, side), mode="area")


@torch.no_grad()
def encode_picture(picture: Image.Image, codec: ImageTokenizer, *, grid: int, device: torch.device) -> Tensor:
    """The codes (grid, grid) of the middle of a picture."""
    return codec.encode(square(picture, grid * codec.factor).to(device))[0]


def _files(folder: Path) -> list[str]:
    for depth, endings in product(("*", "**/*"), (CODES, PICTURES)):
        if found := {path for path in folder.glob(depth) if path.suffix.lower() in endings and path.is_file()}:
            stems = {path.with_suffix("") for path in found}
            return [str(path) for path in sorted(found) if _decoded_from(path) not in stems]
    raise ImageError(f"{folder} and its folders hold neither .npy files of codes nor pictures")


def _decoded_from(path: Path) -> Path | None:
    """What `path` would be a decoded picture of, without its ending; None for a name that decoding does not give."""
    match = DECODED.fullmatch(path.name)
    return path.with_name(match[1]) if match else None


def _reason(error: Exception, otherwise: str) -> object:
    """Why a file or an address could not be read, in the system's words where it has some."""
    said = getattr(error, "strerror", None) or getattr(error, "reason", None)  # of a file, of an address
    return said if said and isinstance(error, OSError) else otherwise


def _open(name: str) -> IO[bytes]:
    if not name.startswith(ADDRESSES):
        return Path(name).open("rb")
    from http.client import HTTPException
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(name, timeout=TIMEOUT) as answer:
            return io.BytesIO(answer.read())
    except (HTTPException, TimeoutError, ValueError) as error:  # no address at all, or an answer that broke off
        raise URLError(str(error)) from None
