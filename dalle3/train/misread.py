"""Codes read wrongly on purpose, as those that a DALLE draws are not always right.

Shapes: B batch, h w grid of codes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def misread(codes: Tensor, most: float, vocabulary: int, *, rng: torch.Generator) -> Tensor:
    """Codes (B, h, w) with some of them any of the vocabulary; which part is uniform in [0, `most`] for each picture.

    A model that draws reads its own mistakes, of which pictures alone teach it nothing (exposure bias; scheduled
    sampling, arXiv:1506.03099, is a costlier cure). And codes that cannot be trusted leave more to the caption.
    """
    parts = most * torch.rand(len(codes), *[1] * (codes.ndim - 1), generator=rng)
    wrong = torch.rand(codes.shape, generator=rng) < parts
    others = torch.randint(vocabulary, codes.shape, generator=rng)
    return torch.where(wrong.to(codes.device), others.to(codes.device), codes)
