"""From a prompt to pictures, as a stream of events: the bar, the notebook, the server and the tests read the same one.

Nothing here prints or writes; the doors do. Shapes: B pictures of a batch, L caption tokens, h w grid of codes, K codes
of a prime.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

import dalle3
from dalle3.checkpoint import Checkpoint, fingerprint
from dalle3.config import option, to_dict
from dalle3.decoding import Decoder, Prefix
from dalle3.errors import ConfigError, ImageError, PromptError
from dalle3.models.dalle import Dalle
from dalle3.models.image_tokenizer import ImageTokenizer
from dalle3.output import Picture
from dalle3.rerank import BestOf, Ranker, Scorer, Tokenize
from dalle3.sampling import Recommended, SamplingChoice
from dalle3.tokenizers.base import Tokenizer, tokenize

PRIME_FRACTION = 0.4375  # of the codes come from `image`, as in dalle-pytorch: 14 of the 32 rows of OpenAI's DALL-E


@dataclass(frozen=True, kw_only=True)
class Request(SamplingChoice):
    """What to draw and how. Its fields are the flags of `generate.py` and the keys of a line of `--prompts_file`.

    What it leaves open of how codes are drawn is as the model recommends.
    """

    text: str = option(help="what the picture should show")
    num_images: int = option(12, help="pictures to draw")
    batch_size: int | None = option(
        None,
        help="pictures drawn at once; it bounds memory and changes speed, never pictures (default: 16, or what of a "
        "large model fits 2 GB, at least 4)",
    )
    seed: int | None = option(None, help="picture i is a function of seed and i alone (default: a random one, printed)")
    index: int | None = option(None, help="draw only the seed's picture of this number")
    best_of: int | None = option(
        None,
        help="candidates of each picture, of which CLIP takes the best (default: as the model says, mostly 1, "
        "and 1 where CLIP sorts all that is drawn)",
    )
    clip_sort: bool = option(False, help="let CLIP score the pictures, and write them best first")
    keep: int | None = option(None, help="keep only so many, the best by CLIP score (implies clip_sort)")
    gentxt: bool = option(False, help="let the model complete the text first")
    truncate_captions: bool = option(False, help="cut a prompt that is too long instead of refusing it")
    image: Path | Image.Image | None = option(None, help="a picture whose upper part every drawing starts with")
    num_init_img_tokens: int | None = option(None, help="codes taken from --image (default: 43.75 % of them)")

    def __post_init__(self) -> None:
        """Raises ConfigError or PromptError where a value cannot be."""
        super().__post_init__()
        if not self.text.strip():
            raise PromptError("the prompt is empty; write what the picture should show")
        if any("\ud800" <= character <= "\udfff" for character in self.text):
            raise PromptError(f"the prompt {self.text!r} is not UTF-8 text")
        for names, least in (
            (("num_images", "batch_size", "best_of", "keep"), 1),
            (("index", "seed", "num_init_img_tokens"), 0),
        ):
            for name in names:
                if (value := getattr(self, name)) is not None and value < least:
                    raise ConfigError(f"{name} is {value}; it must be {least} or more")
        if self.num_init_img_tokens is not None and self.image is None:
            raise ConfigError("num_init_img_tokens says how much to take from a picture; name the picture with image")

    @property
    def indices(self) -> Sequence[int]:
        """The numbers of the pictures to draw."""
        return range(self.num_images) if self.index is None else (self.index,)

    @property
    def ranked(self) -> bool:
        """Whether CLIP orders the pictures."""
        return self.clip_sort or self.keep is not None

    def candidates(self, own: Recommended) -> int:
        """How many candidates each picture has, of a model with its `own` settings."""
        return self.best_of or (1 if self.ranked else own.best_of or 1)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a request is."""

    done: int  # pictures
    total: int
    seconds: float  # since the drawing began

    @property
    def images_per_second(self) -> float:
        """The mean rate so far."""
        return self.done / max(self.seconds, 1e-9)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished picture. It comes as soon as it is drawn, or, where CLIP ranks, at the end and best first."""

    place: int  # its rank from 0 where CLIP ranks, else its index
    prompt: str  # as drawn: completed where `gentxt` was asked for
    picture: Picture


class Stopped(Exception):  # noqa: N818 (it is not an error)
    """Raised by a tick to end the drawing early. What is finished is still ranked and yielded."""


Tick = Callable[[float], None]  # called after every code with the pictures done so far, the fraction included


@dataclass(kw_only=True, eq=False)
class Model:
    """Everything a prompt passes through; `dalle3.load` returns one."""

    dalle: Dalle
    codec: ImageTokenizer
    tokenizer: Tokenizer
    open_clip: Callable[[], tuple[Scorer, Tokenize]]  # called when first a ranking is asked for
    checkpoints: Mapping[str, Checkpoint]  # "dalle" and "codec": what the recipes name by hash

    def generate(
        self,
        prompt: str,
        n: int = 4,
        *,
        top_p: float | None = None,
        top_k: float | None = None,
        temperature: float | None = None,
        cond_scale: float | None = None,
        seed: int | None = None,
        index: int | None = None,
        best_of: int | None = None,
        clip_sort: bool = False,
        keep: int | None = None,
        batch_size: int | None = None,
        image: str | Path | Image.Image | None = None,
        num_init_img_tokens: int | None = None,
        truncate_captions: bool = False,
    ) -> list[Picture]:
        """`n` pictures of `prompt`, best first where CLIP ranks them (`clip_sort` or `keep`).

        How codes are drawn is as the model recommends (`recommended`) wherever it is None.

        Args:
            n: pictures to draw; of them `keep` are returned.
            top_p: draw from the likeliest codes that reach this probability, in (0, 1]; mostly 0.9 without `top_k`.
            top_k: below 1 the fraction of the codes left out, from 1 on the number kept.
            temperature: above 1 bolder, below 1 safer; mostly 1.
            cond_scale: guidance; above 1 the prompt pulls harder; mostly 1.
            seed: picture i is a function of seed and i alone; None is random, and each picture tells its own.
            index: draw only the seed's picture of this number.
            best_of: candidates of each picture, of which CLIP takes the best; mostly 1, and 1 where CLIP ranks anyway.
            batch_size: pictures drawn at once; it bounds memory and never changes a picture. None is 16, or what of
                a large model fits 2 GB, at least 4.
            image: a picture or its path, whose upper part every drawing starts with.
            num_init_img_tokens: codes taken from `image`; None is 43.75 % of them.
        Raises:
            Dalle3Error: a value that cannot be.
        """
        request = Request(
            text=prompt,
            num_images=n,
            top_p=top_p,
            top_k=top_k,
            temperature=temperature,
            cond_scale=cond_scale,
            seed=seed,
            index=index,
            best_of=best_of,
            clip_sort=clip_sort,
            keep=keep,
            batch_size=batch_size,
            image=Path(image) if isinstance(image, str) else image,
            num_init_img_tokens=num_init_img_tokens,
            truncate_captions=truncate_captions,
        )
        return [event.picture for event in run(self, request) if isinstance(event, Result)]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each part's weights."""
        return {name: fingerprint(checkpoint.state) for name, checkpoint in self.checkpoints.items()}

    @cached_property
    def clip(self) -> tuple[Scorer, Tokenize]:
        """The CLIP that ranks, and its tokenizer.

        Raises:
            Dalle3Error: there is none, or its file is broken.
        """
        return self.open_clip()

    @property
    def recommended(self) -> Recommended:
        """How the DALLE draws best, as its folder says."""
        return self.checkpoints["dalle"].recommended

    @torch.inference_mode()
    def pixels(self, codes: Tensor) -> Tensor:
        """The image tokenizer's pictures (B, 3, H, W) in [0, 1] of codes (B, h, w)."""
        # A CPU decodes one by one: it costs nothing, and the rounding of a picture cannot depend on its company.
        parts = codes.to(self.device).split(1 if self.device.type == "cpu" else len(codes))
        return torch.cat([self.codec.decode(part) for part in parts]).float().clamp(0, 1)

    @cached_property
    def decoder(self) -> Decoder:
        """The DALLE laid out for drawing."""
        return Decoder(self.dalle)

    @property
    def device(self) -> torch.device:
        """Where the DALLE computes."""
        return self.dalle.to_logits.weight.device


def run(model: Model, request: Request, *, tick: Tick = lambda done: None) -> Iterator[Progress | Result]:
    """Draws `request`: a Progress after each batch, and a Result for each picture that is kept.

    Memory holds the pictures of one batch and, where CLIP ranks, those that are kept.

    Args:
        tick: is called after every code; may raise Stopped.
    Raises:
        Dalle3Error: something in the request cannot be; before the first code is drawn.
    """
    yield from Drawing(model, request).events(tick=tick)


class Drawing:
    """A request checked against a model: the caption fits, the picture to start from is read, CLIP is there."""

    def __init__(self, model: Model, request: Request) -> None:
        """Raises Dalle3Error where something in the request cannot be."""
        self.model, self.request = model, request
        self.seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        self.sampling, self.best_of = request.settled(model.recommended), request.candidates(model.recommended)
        self.prompt, self.text = request.text, read_caption(model, request)
        self.prime = None if request.image is None else encode_prime(model, request)
        self.clip = model.clip if request.ranked or self.best_of > 1 else None

    @property
    def own(self) -> dict[str, float]:
        """The settings that are the model's own, by name: the request leaves them open."""
        asked, own = self.request.said, self.request.over(self.model.recommended).said
        chosen = {"best_of": self.best_of} if self.best_of > 1 and self.request.best_of is None else {}
        return {**{name: value for name, value in own.items() if name not in asked}, **chosen}

    def events(self, *, tick: Tick = lambda done: None) -> Iterator[Progress | Result]:
        """As `run`."""
        if self.request.gentxt:
            self.text = self.model.decoder.complete(self.text, self.sampling, seed=self.seed)
            self.prompt = self.model.tokenizer.decode(self.text.tolist())
        prefix = self.model.decoder.read(self.text, cond_scale=self.sampling.cond_scale, prime=self.prime)
        clip = Ranker[Picture](*self.clip, self.prompt, keep=self.request.keep) if self.clip else None
        choice, ranker = BestOf[Picture](clip, self.best_of), clip if self.request.ranked else None
        with contextlib.suppress(Stopped):
            yield from self._batches(prefix, choice, ranker, tick)
        for place, (score, _, picture) in enumerate(ranker.best() if ranker else []):
            picture = dataclasses.replace(picture, score=score, recipe={**picture.recipe, "score": score})
            yield Result(place=place, prompt=self.prompt, picture=picture)

    def _batches(
        self, prefix: Prefix, choice: BestOf[Picture], ranker: Ranker[Picture] | None, tick: Tick
    ) -> Iterator[Progress | Result]:
        start, indices, number = time.perf_counter(), self.request.indices, self.best_of
        candidates = [index * number + candidate for index in indices for candidate in range(number)]
        size = self.request.batch_size or self.model.decoder.pictures_at_once(self.sampling)
        for done in range(0, len(candidates), size):
            some = candidates[done : done + size]
            codes = self._draw(prefix, some, done=done, tick=tick)
            pixels, pictures = choice.add(*self._decode(codes, some))
            if ranker is not None:
                ranker.add(pixels, [picture.index for picture in pictures], pictures)
            else:
                for picture in pictures:
                    yield Result(place=picture.index, prompt=self.prompt, picture=picture)
            drawn = (done + len(some)) // number
            yield Progress(done=drawn, total=len(indices), seconds=time.perf_counter() - start)

    def _draw(self, prefix: Prefix, candidates: Sequence[int], *, done: int, tick: Tick) -> Tensor:
        return self.model.decoder.draw(
            prefix,
            self.sampling,
            seed=self.seed,
            indices=candidates,
            on_token=lambda drawn, codes: tick((done + len(candidates) * drawn / codes) / self.best_of),
        )

    def _decode(self, codes: Tensor, candidates: Sequence[int]) -> tuple[Tensor, list[Picture]]:
        """The pictures of codes (B, h, w), also as pixels (B, 3, H, W) in [0, 1]."""
        pixels = self.model.pixels(codes)
        images = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        pictures = [
            Picture(
                image=Image.fromarray(image),
                codes=grid,
                seed=self.seed,
                index=number // self.best_of,
                recipe={**self.recipe, **self._numbers(number), "size": [image.shape[1], image.shape[0]]},
            )
            for image, grid, number in zip(images, codes.cpu().numpy(), candidates, strict=True)
        ]
        return pixels, pictures

    def _numbers(self, candidate: int) -> dict[str, int]:
        """What a recipe says of which picture this is: as a candidate it can be drawn alone, with best_of 1."""
        if self.best_of == 1:
            return {"index": candidate}
        return {"index": candidate // self.best_of, "candidate": candidate}

    @property
    def recipe(self) -> dict[str, Any]:
        """What all pictures of the request share: with the index, everything needed to draw one again."""
        request, sampling = self.request, self.sampling
        settings: dict[str, Any] = {**to_dict(sampling), "truncate_captions": request.truncate_captions}
        if self.best_of > 1:
            settings["best_of"] = self.best_of
        if self.prime is not None:
            name = request.image.name if isinstance(request.image, Path) else "a picture in memory"
            settings |= {"image": name, "num_init_img_tokens": len(self.prime)}
        return {
            "prompt": self.prompt,
            **({"completed_from": request.text} if request.gentxt else {}),
            "seed": self.seed,
            "settings": settings,
            "dtype": str(self.model.dalle.to_logits.weight.dtype).removeprefix("torch."),
            "weights": self.model.hashes,
            "versions": {"dalle3": dalle3.__version__, "torch": torch.__version__},
        }


def read_caption(model: Model, request: Request) -> Tensor:
    """The ids (L,) of the prompt.

    Raises:
        PromptError: it is too long or holds no words.
    """
    length = model.dalle.config.text_seq_len
    return tokenize(model.tokenizer, [request.text], length, truncate=request.truncate_captions)[0]


def encode_prime(model: Model, request: Request) -> Tensor:
    """The codes (K,) that every drawing starts with, the first of `request.image`, cut square and resized.

    Raises:
        ImageError: the picture cannot be read.
        ConfigError: it would leave nothing to draw.
    """
    config = model.dalle.config
    count = request.num_init_img_tokens
    count = int(PRIME_FRACTION * config.image_seq_len) if count is None else count
    if count >= config.image_seq_len:
        raise ConfigError(f"num_init_img_tokens is {count}; a picture has {config.image_seq_len}, so pass fewer")
    side = config.image_grid * model.codec.factor
    image = ImageOps.fit(_open_image(request.image), (side, side), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(model.device).float() / 255
    with torch.inference_mode():
        return model.codec.encode(pixels).flatten()[:count]


def _open_image(image: Path | Image.Image | None) -> Image.Image:
    assert image is not None, "asked for only where there is one"
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is not a picture that can be read"
        raise ImageError(f"--image {image}: {reason}") from None
