"""A CLIP as judge of pictures, and what its features say of them.

Shapes: B batch, N pictures, K pictures of each prompt, V distinct captions, E width of CLIP's space.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from dalle3.checkpoint import fingerprint
from dalle3.rerank import Scorer, Tokenize
from dalle3.runtime import generator

BATCH = 32


class Judge:
    """What a CLIP sees in pictures and reads in captions: unit vectors, float64, on the CPU."""

    def __init__(self, clip: Scorer, tokenize: Tokenize) -> None:
        assert isinstance(clip, nn.Module)
        self._clip, self._tokenize = clip, tokenize
        self._device = next(clip.parameters()).device

    @cached_property
    def hash(self) -> str:
        """The SHA-256 of the CLIP's weights."""
        assert isinstance(self._clip, nn.Module)
        return fingerprint(self._clip.state_dict())

    @torch.inference_mode()
    def see(self, pictures: Tensor) -> Tensor:
        """Features (N, E) of pictures (N, 3, H, W) in [0, 1] of any size."""
        return torch.cat(
            [self._clip.encode_image(some.to(self._device)).cpu() for some in pictures.split(BATCH)]
        ).double()

    @torch.inference_mode()
    def read(self, captions: Sequence[str]) -> Tensor:
        """Features (N, E) of captions, cut where they are too long."""
        rows = self._tokenize(list(captions)).split(BATCH)
        return torch.cat([self._clip.encode_text(some.to(self._device)).cpu() for some in rows]).double()


class Retrieval:
    """The captions of a data set, among which a picture is to find its own.

    Args:
        captions: one for each prompt.
        features: of them, (N, E).
        among: captions to choose from: a prompt's own and others of the same data set, drawn by chance, none equal
            to it or to each other; fewer where the data set has fewer.
        seed: of that chance.
    """

    def __init__(self, captions: Sequence[str], features: Tensor, *, among: int, seed: int) -> None:
        self.features = features
        first = {caption: number for number, caption in reversed(list(enumerate(captions)))}
        distinct = torch.tensor(sorted(first.values()))
        own = torch.tensor([first[caption] for caption in captions])
        self.among = min(among, len(distinct))
        self.others = [
            self._draw(distinct, own[number], generator(seed, "captions", number)) for number in range(len(own))
        ]

    def precision(self, pictures: Tensor) -> float:
        """The part of the pictures (N, E), one of each prompt, that are nearest to their own caption.

        R-precision with one right answer (arXiv:1711.10485, section 4). A tie is a miss.
        """
        right = [
            float(caption @ picture) > float((self.features[others] @ picture).max())
            for picture, caption, others in zip(pictures, self.features, self.others, strict=True)
        ]
        return sum(right) / len(right)

    def score(self, pictures: Tensor) -> float:
        """The mean cosine of pictures (N, E) and their captions."""
        return mean_cosine(pictures, self.features)

    def _draw(self, distinct: Tensor, own: Tensor, rng: torch.Generator) -> Tensor:
        wrong = distinct[distinct != own]
        return wrong[torch.randperm(len(wrong), generator=rng)[: self.among - 1]]


def mean_cosine(pictures: Tensor, captions: Tensor) -> float:
    """The mean cosine of pictures (N, E) and their captions (N, E), unit vectors."""
    return float((pictures * captions).sum(1).mean())


def best_of(pictures: Tensor, captions: Tensor, number: int) -> Tensor:
    """Which of the first `number` of each prompt's pictures (N, K, E) is nearest to its caption (N, E): (N,)."""
    return torch.einsum("nke,ne->nk", pictures[:, :number], captions).argmax(1)
