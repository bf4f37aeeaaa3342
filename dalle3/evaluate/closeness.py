"""How close redrawn pictures are to their originals, and how image codes are used.

Shapes: B batch, H W picture in pixels, h w grid of codes, V codebook entries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_ERROR = 1e-10  # 100 dB, so that a perfect picture has a figure


class Closeness:
    """The squared error of pictures, gathered batch by batch."""

    def __init__(self) -> None:
        self._errors: list[Tensor] = []

    def add(self, drawn: Tensor, originals: Tensor) -> None:
        """Takes up pictures (B, 3, H, W) in [0, 1] and what they should be."""
        self._errors.append((drawn.double() - originals.double()).square().flatten(1).mean(1).cpu())

    def figures(self) -> dict[str, float]:
        """`psnr` of all pixels together, and `psnr_mean`, the mean of the pictures' own; both in dB."""
        errors = torch.cat(self._errors).clamp(min=LEAST_ERROR)
        return {"psnr": -10 * math.log10(float(errors.mean())), "psnr_mean": float(-10 * errors.log10().mean())}


class CodeUse:
    """How often each entry of a codebook was used."""

    def __init__(self, num_tokens: int) -> None:
        self._counts = torch.zeros(num_tokens, dtype=torch.int64)

    def add(self, codes: Tensor) -> None:
        """Takes up codes (B, h, w)."""
        self._counts += torch.bincount(codes.flatten().cpu(), minlength=len(self._counts))

    def figures(self) -> dict[str, float]:
        """`codebook_use`, the part of the entries used, and `perplexity`: how many, used alike, would say as much."""
        shares = self._counts.double() / self._counts.sum()
        entropy = -(shares * shares.clamp(min=1e-300).log()).sum()
        return {"codebook_use": float((self._counts > 0).double().mean()), "perplexity": float(entropy.exp())}
