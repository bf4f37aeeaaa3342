"""What a data set holds: sizes, captions, lengths, duplicates, and what in it cannot be used.

Every picture is decoded, and 24 bytes are kept of each and of each caption, whatever their number and size.

Shapes: N pictures that can be read, M captions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from dalle3.data.base import BrokenSampleError, PictureFiles, Sample
from dalle3.errors import PromptError
from dalle3.tokenizers.base import Tokenizer

CHUNK = 64  # samples a process examines before it reports
SAME_PIXELS = "the same pixels after decoding"
TOP = 5  # sizes shown
LONG_SIDE = 2  # times the short one, from which a square crop loses half of a picture
_PICTURE = np.dtype([("index", "i8"), ("width", "i4"), ("height", "i4"), ("hash", "u8")])
_CAPTION = np.dtype([("index", "i8"), ("words", "i4"), ("tokens", "i4"), ("hash", "u8")])


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found in some samples.

    Attributes:
        pictures: (N,) of index, width, height and the hash of the pixels.
        captions: (M,) of their picture's index, words, tokens and the hash of the text.
        num_broken: samples that cannot be used.
        broken: why, of the first of them.
    """

    pictures: np.ndarray
    captions: np.ndarray
    num_broken: int
    broken: tuple[str, ...]


class Together:
    """Several data sets as one."""

    at_least: int | None = None

    def __init__(self, sources: Sequence[PictureFiles]) -> None:
        self.sources = sources
        self.skipped = [line for source in sources for line in source.skipped]
        self._starts = np.cumsum([0, *(len(source) for source in sources)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, index: int) -> str:
        """What its data set calls the sample."""
        source, place = self._find(index)
        return source.name(place)

    def num_bytes(self) -> int:
        """The bytes of all pictures as they are stored."""
        return sum(source.num_bytes() for source in self.sources)

    def load(self, index: int) -> Sample[Image.Image]:
        """The picture and its captions."""
        source, place = self._find(index)
        return source.load(place)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of a picture, which is not read."""
        source, place = self._find(index)
        return source.captions(place)

    def _find(self, index: int) -> tuple[PictureFiles, int]:
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sources[which], index - int(self._starts[which])


def examine(
    source: PictureFiles,
    *,
    tokenizer: Tokenizer | None = None,
    num_workers: int = 0,
    named: int = 10,
    tick: Callable[[int], object] = lambda _: None,
) -> Findings:
    """What is found in all samples of a data set.

    Args:
        tokenizer: counts the tokens of captions; without one there are 0 in each.
        num_workers: processes that share the work; 0 does it in this one.
        named: broken samples of which the reason is kept.
        tick: is told how many samples were examined, as they are.
    """
    parts = DataLoader(
        _Examiner(source, tokenizer, named),  # type: ignore[arg-type]  # only __getitem__ is asked for
        batch_size=None,
        sampler=[range(start, min(start + CHUNK, len(source))) for start in range(0, len(source), CHUNK)],  # type: ignore[arg-type]
        collate_fn=_itself,  # type: ignore[arg-type]
        num_workers=num_workers,
    )
    pictures, captions = [np.zeros(0, _PICTURE)], [np.zeros(0, _CAPTION)]
    num_broken, broken = len(source.skipped), source.skipped[:named]
    for part in parts:
        pictures.append(part.pictures)
        captions.append(part.captions)
        num_broken += part.num_broken
        broken += part.broken[: named - len(broken)]
        tick(len(part.pictures) + part.num_broken)
    return Findings(
        pictures=np.concatenate(pictures),
        captions=np.concatenate(captions),
        num_broken=num_broken,
        broken=tuple(broken),
    )


def report(found: Findings, source: PictureFiles, *, text_seq_len: int | None, named: int = 10) -> dict[str, Any]:
    """What was found, as a JSON object.

    Args:
        text_seq_len: tokens that the model reads; None where tokens were not counted.
        named: lines shown of each thing there can be many of.
    """
    tokens = {} if text_seq_len is None else {"tokens": _tokens(found.captions, source, text_seq_len, named)}
    return {
        "pictures": len(found.pictures),
        "bytes": source.num_bytes(),
        "broken": {"count": found.num_broken, "first": list(found.broken)},
        "captions": _captions(found),
        "words": _spread(found.captions["words"]),
        **tokens,
        **_sizes(found.pictures),
        "duplicate_pictures": _twins(found.pictures, source, named),
        "duplicate_captions": _echoes(found.captions, source, named),
    }


class _Examiner:
    """Examines the samples of a chunk."""

    def __init__(self, source: PictureFiles, tokenizer: Tokenizer | None, named: int) -> None:
        self.source, self.tokenizer, self.named = source, tokenizer, named

    def __getitem__(self, indices: range) -> Findings:
        pictures, captions, broken = [], [], []
        for index in indices:
            try:
                sample = self.source.load(index)
                captions += [(index, *self._measure(text)) for text in sample.captions]
            except BrokenSampleError as error:
                broken.append(str(error))
            except PromptError as error:
                broken.append(f"{self.source.name(index)}: {error}")
            else:
                pictures.append((index, *sample.content.size, _hash_picture(sample.content)))
        return Findings(
            pictures=np.array(pictures, _PICTURE),
            captions=np.array(captions, _CAPTION),
            num_broken=len(broken),
            broken=tuple(broken[: self.named]),
        )

    def _measure(self, text: str) -> tuple[int, int, int]:
        tokens = 0 if self.tokenizer is None else len(self.tokenizer.encode(text))
        return len(text.split()), tokens, _hash_text(text)


def _itself(part: Findings) -> Findings:
    return part


def _hash(*parts: bytes) -> int:
    """64 bits: two of a million different contents have the same in one of thirty million data sets."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "big")


def _hash_picture(picture: Image.Image) -> int:
    return _hash(repr(picture.size).encode(), picture.tobytes())


def _hash_text(text: str) -> int:
    return _hash(text.encode(errors="surrogateescape"))


def _captions(found: Findings) -> dict[str, Any]:
    _, each = np.unique(found.captions["index"], return_counts=True)
    return {
        "count": len(found.captions),
        "pictures_with_none": len(found.pictures) - len(each),
        "pictures_with_several": int((each > 1).sum()),
        "most": int(each.max(initial=0)),
    }


def _tokens(captions: np.ndarray, source: PictureFiles, text_seq_len: int, named: int) -> dict[str, Any]:
    long = captions[captions["tokens"] > text_seq_len]
    return {
        **_spread(captions["tokens"]),
        "text_seq_len": text_seq_len,
        "too_long": len(long),
        "first": [f"{source.name(int(row['index']))}: {row['tokens']} tokens" for row in long[:named]],
    }


def _sizes(pictures: np.ndarray) -> dict[str, Any]:
    width, height = pictures["width"].astype(np.int64), pictures["height"].astype(np.int64)
    sizes, counts = np.unique(width << 32 | height, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:TOP]
    ratio = width / np.maximum(height, 1)
    return {
        "shorter_side": _spread(np.minimum(width, height)),
        "sizes": [[int(sizes[i] >> 32), int(sizes[i] & 0xFFFFFFFF), int(counts[i])] for i in order],
        "other_sizes": len(sizes) - len(order),
        "width_to_height": _spread(ratio),
        "oblong": int((np.maximum(ratio, 1 / np.maximum(ratio, 1e-9)) >= LONG_SIDE).sum()),
    }


def _twins(pictures: np.ndarray, source: PictureFiles, named: int) -> dict[str, Any]:
    """Pictures that are in the data set more than once: how many too many, and the first pairs."""
    rows = pictures[np.argsort(pictures["hash"], kind="stable")]
    again = np.flatnonzero(rows["hash"][1:] == rows["hash"][:-1]) + 1
    shown = again[np.argsort(rows["index"][again])][:named]
    pairs = zip(rows["index"][shown - 1].tolist(), rows["index"][shown].tolist(), strict=True)
    return {
        "compared": SAME_PIXELS,
        "count": len(again),
        "first": [[source.name(one), source.name(other)] for one, other in pairs],
    }


def _echoes(captions: np.ndarray, source: PictureFiles, named: int) -> dict[str, Any]:
    """Captions that stand more than once: how many too many, and the most frequent."""
    hashes, places, times = np.unique(captions["hash"], return_index=True, return_counts=True)
    order = [i for i in np.argsort(-times, kind="stable")[:named] if times[i] > 1]
    return {
        "count": len(captions) - len(hashes),
        "most": [[_text(source, captions[places[i]]), int(times[i])] for i in order],
    }


def _text(source: PictureFiles, row: Any) -> str:
    texts = source.captions(int(row["index"]))
    return next(text for text in texts if _hash_text(text) == row["hash"])


def _spread(values: np.ndarray) -> dict[str, float]:
    """Least, median, the value that 95 % do not exceed, and most; nothing for no values."""
    if not len(values):
        return {}
    least, median, most_of_them, most = np.quantile(values, [0, 0.5, 0.95, 1], method="lower").tolist()
    return {"least": least, "median": median, "p95": most_of_them, "most": most}
