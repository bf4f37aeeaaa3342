"""What a data set offers: samples by index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from dalle3.errors import DataError

T_co = TypeVar("T_co", covariant=True)

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


@dataclass(frozen=True, kw_only=True)
class Sample(Generic[T_co]):
    """A picture (`PIL.Image`) or its codes (`Tensor`), and its captions: none only where none is needed."""

    content: T_co
    captions: tuple[str, ...] = ()


class BrokenSampleError(DataError):
    """One sample that cannot be used; it is skipped, counted and named."""


class Source(Protocol[T_co]):
    """A data set one can index."""

    skipped: list[str]  # what was left out when the data set was opened, one line each

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What the user knows the sample by, such as its path."""
        ...

    def load(self, index: int) -> Sample[T_co]:
        """The sample at `index`.

        Raises:
            BrokenSampleError: it is unreadable, or lacks a caption where the data set needs one.
        """
        ...


def caption_lines(text: str, *, where: str) -> tuple[str, ...]:
    """The captions of a text file: one for each line that is not blank.

    Raises:
        BrokenSampleError: there is none.
    """
    captions = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not captions:
        raise BrokenSampleError(f"{where}: the caption is empty")
    return captions
