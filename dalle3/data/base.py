"""What a data set offers: samples by index."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from PIL import Image

from dalle3.errors import DataError
from dalle3.log import warn

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


@runtime_checkable
class PictureFiles(Source[Image.Image], Protocol):
    """A data set of stored pictures."""

    at_least: int | None  # see `reduced`

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of a picture, which is not read.

        Raises:
            BrokenSampleError: they cannot be read, or there are none where they are needed.
        """
        ...

    def num_bytes(self) -> int:
        """The bytes of all pictures as they are stored."""
        ...


def reduced(source: PictureFiles, at_least: int) -> PictureFiles:
    """The same data set, whose large JPEGs are decoded smaller, but with sides of `at_least` pixels."""
    other = copy.copy(source)
    other.at_least = at_least
    return other


def captions_of(source: Source, index: int) -> tuple[str, ...]:
    """The captions of a sample, whose picture is not read where it need not be.

    Raises:
        BrokenSampleError: as `load`.
    """
    return source.captions(index) if isinstance(source, PictureFiles) else source.load(index).captions


def readable(source: Source[T_co], indices: Iterable[int]) -> Iterator[tuple[int, Sample[T_co]]]:
    """The samples at `indices` with their index; those that cannot be read are named in a warning and left out."""
    for index in indices:
        try:
            sample = source.load(index)
        except BrokenSampleError as error:
            warn(f"skipped {error}")
            continue
        yield index, sample


def caption_lines(text: str) -> tuple[str, ...]:
    """The captions of a text file: one for each line that is not blank."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def json_captions(row: dict[str, Any]) -> tuple[str, ...]:
    """The captions in an object's `captions` or `caption`, a text or a list of texts."""
    found = row.get("captions") or row.get("caption") or ()
    texts = [found] if isinstance(found, str) else found
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())
