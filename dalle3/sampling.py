"""From logits to codes: top-k, top-p, temperature, guidance, and noise that belongs to one image.

Shapes: R rows (images), C image codes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dalle3.config import option
from dalle3.errors import ConfigError
from dalle3.runtime import generator

FILTERS = ("top_p", "top_k")


@dataclass(frozen=True, kw_only=True)
class SamplingChoice:
    """How the next code is chosen, as far as it is said; None leaves it open."""

    top_p: float | None = option(
        None,
        help="keep the likeliest codes that together reach this probability, in (0, 1] (default: as the model says, "
        "mostly 0.9; without it where --top_k is given)",
    )
    top_k: float | None = option(
        None, help="in (0, 1): drop this fraction of all tokens; 1 or more: keep so many codes"
    )
    temperature: float | None = option(
        None,
        help="above 0; below 1 sharpens, above 1 flattens; 0 takes the likeliest code (default: as the model says, "
        "mostly 1)",
    )
    cond_scale: float | None = option(
        None,
        help="guidance: how far to go from the empty caption's logits past the caption's (default: as the model says, "
        "mostly 1)",
    )

    def __post_init__(self) -> None:
        """Raises ConfigError where a value cannot be."""
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        for name in ("top_k", "temperature", "cond_scale"):
            if not math.isfinite(getattr(self, name) or 0):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be finite")
        if self.top_k is not None and (self.top_k <= 0 or (self.top_k > 1 and self.top_k != int(self.top_k))):
            raise ConfigError(f"top_k is {self.top_k}; it must be a fraction between 0 and 1 or a whole number")
        if self.temperature is not None and self.temperature < 0:
            raise ConfigError(f"temperature is {self.temperature}; it must be 0 or more")

    @property
    def said(self) -> dict[str, float]:
        """The values that are not open, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(SamplingChoice)}
        return {name: value for name, value in values.items() if value is not None}

    def over(self, other: SamplingChoice) -> SamplingChoice:
        """What is said here, and the rest as `other` says; who says top_p or top_k here takes neither from `other`."""
        theirs = other.said
        if self.said.keys() & FILTERS:
            theirs = {name: value for name, value in theirs.items() if name not in FILTERS}
        return SamplingChoice(**{**theirs, **self.said})

    def settled(self, own: SamplingChoice) -> Sampling:
        """This choice with what it leaves open as the model's `own`, and what that leaves open as usual."""
        return Sampling(**self.over(own).over(USUAL).said)


USUAL = SamplingChoice(top_p=0.9, temperature=1.0, cond_scale=1.0)  # top_p as in the DALL-3 fork


@dataclass(frozen=True, kw_only=True)
class Recommended(SamplingChoice):
    """How a DALLE draws best, as its folder says: used for whatever the user leaves open."""

    example: str | None = option(None, help="a prompt it draws well, drawn where none is given")
    best_of: int | None = option(None, help="candidates of each picture, of which the CLIP beside it takes the best")

    def __post_init__(self) -> None:
        """Raises ConfigError where a value cannot be."""
        super().__post_init__()
        if self.example is not None and not self.example.strip():
            raise ConfigError("example is empty; it must be a prompt, such as 'a large red circle'")
        if self.best_of is not None and self.best_of < 1:
            raise ConfigError(f"best_of is {self.best_of}; it must be 1 or more")

    @property
    def stated(self) -> dict[str, float | str]:
        """All that is there, by name: its form in config.json."""
        others = {"example": self.example, "best_of": self.best_of}
        return {**self.said, **{name: value for name, value in others.items() if value is not None}}

    def instead_of(self, other: Recommended) -> Recommended:
        """What is said here, and the rest as `other` says."""
        return Recommended(
            **self.over(other).said, example=self.example or other.example, best_of=self.best_of or other.best_of
        )


@dataclass(frozen=True, kw_only=True)
class Sampling(SamplingChoice):
    """How the next code is chosen, nothing open; without a filter all codes are kept."""

    temperature: float = 1.0
    cond_scale: float = 1.0

    def count(self, num_tokens: int, num_codes: int) -> int:
        """How many codes top_k keeps of `num_codes`; a fraction counts text ids too, as dalle-pytorch's does."""
        if self.top_k is None:
            return num_codes
        count = int(self.top_k) if self.top_k >= 1 else max(int((1 - self.top_k) * num_tokens), 1)
        return min(count, num_codes)


class Noise:
    """The random numbers of some images or texts; those of number i are a function of (seed, purpose, i) alone.

    R are the indices of the first seed, then those of the next.
    """

    def __init__(self, seeds: Sequence[int], purpose: str, indices: Sequence[int], size: int) -> None:
        self._generators = [generator(seed, purpose, index) for seed in seeds for index in indices]
        self._uniform = torch.empty(len(self._generators), size)

    def gumbel(self) -> Tensor:
        """The next (R, C) standard Gumbel numbers, float32 on the CPU."""
        for row, source in zip(self._uniform, self._generators, strict=True):
            row.uniform_(generator=source)
        return -torch.log(-torch.log(self._uniform))


def guide(logits: Tensor, cond_scale: float) -> Tensor:
    """(R, C) guided logits of (2R, C): the caption's rows, then the empty caption's."""
    cond, null = logits.chunk(2)
    return torch.lerp(null, cond, cond_scale)


def draw(logits: Tensor, sampling: Sampling, noise: Noise, *, num_tokens: int) -> Tensor:
    """The codes (R,) drawn from `logits` (R, C).

    It takes the largest of logits / temperature + Gumbel noise, which draws from their softmax and, unlike a search in
    cumulated probabilities, gives the same code on machines whose rounding differs.

    Args:
        num_tokens: text ids and codes together, what a fractional top_k is a fraction of.
    """
    gumbel = noise.gumbel()  # taken even where unused, so that step t has the same numbers under any setting
    kept = keep_likeliest(logits.float(), sampling.count(num_tokens, logits.shape[-1]), sampling.top_p)
    return (kept + gumbel.to(kept.device) * sampling.temperature).argmax(dim=-1)


def keep_likeliest(logits: Tensor, count: int, top_p: float | None = None) -> Tensor:
    """`logits` (R, C) float32 with all but the likeliest set to -inf.

    First the `count` largest stay; of those, the fewest whose probabilities, summed from the largest, exceed `top_p`.
    """
    num_codes = logits.shape[-1]
    if top_p is None or top_p >= 1:
        if count >= num_codes:
            return logits
        counts = torch.full((len(logits), 1), count, device=logits.device)
        return _keep_largest(logits, _nth_largest(logits, count), counts)
    ordered = _descending(logits)[:, :count]
    mass = ordered.softmax(dim=-1).cumsum(dim=-1)
    counts = 1 + (mass[:, :-1] <= top_p).sum(dim=-1, keepdim=True)
    return _keep_largest(logits, ordered.gather(1, counts - 1), counts)


def _keep_largest(logits: Tensor, threshold: Tensor, counts: Tensor) -> Tensor:
    """The `counts` (R, 1) largest of each row; `threshold` (R, 1) is the smallest of them."""
    keep = logits >= threshold
    if bool((keep.sum(dim=-1, keepdim=True) > counts).any()):  # equal logits at the threshold: the first of them stay
        above, ties = logits > threshold, logits == threshold
        keep = above | (ties & (ties.cumsum(dim=-1) <= counts - above.sum(dim=-1, keepdim=True)))
    return logits.masked_fill(~keep, -torch.inf)


def _nth_largest(logits: Tensor, n: int) -> Tensor:
    """The n-th largest of each row, (R, 1)."""
    if logits.device.type == "cpu":  # numpy's vectorised selection: 0.05 ms a row of 8192, torch's topk 0.09
        place = logits.shape[-1] - n
        return torch.from_numpy(np.partition(logits.numpy(), place, axis=-1)[:, place : place + 1])
    return logits.topk(n, dim=-1).values[:, -1:]


def _descending(logits: Tensor) -> Tensor:
    """Each row's values, largest first."""
    if logits.device.type == "cpu":  # numpy's vectorised sort: 0.11 ms a row of 8192, torch's 0.25
        return torch.from_numpy(-np.sort(-logits.numpy(), axis=-1))
    return logits.sort(dim=-1, descending=True).values
