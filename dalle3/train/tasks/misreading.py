"""Codes read wrongly in training, as a model meets them that was drawn, not read off a picture."""

from __future__ import annotations

import torch
from torch import Tensor


def misread(codes: Tensor, others: Tensor, most: float, *, rng: torch.Generator) -> Tensor:
    """Codes (B, h, w) with some of them those of `others`; which part is uniform in [0, `most`] for each picture.

    A model that reads drawn codes meets mistakes, of which pictures alone teach it nothing (exposure bias; scheduled
    sampling, arXiv:1506.03099, is a costlier cure).
    """
    parts = most * torch.rand(len(codes), *[1] * (codes.ndim - 1), generator=rng)
    wrong = torch.rand(codes.shape, generator=rng) < parts
    return torch.where(wrong.to(codes.device), others.to(codes.device), codes)


def any_codes(codes: Tensor, vocabulary: int, *, rng: torch.Generator) -> Tensor:
    """As many codes, each any of the vocabulary."""
    return torch.randint(vocabulary, codes.shape, generator=rng)


def codes_of_elsewhere(codes: Tensor, *, rng: torch.Generator) -> Tensor:
    """As many codes, each from a random place of a random picture of the batch: common ones often, as in drawings."""
    places = torch.randint(codes.numel(), codes.shape, generator=rng)
    return codes.flatten()[places.to(codes.device)]
