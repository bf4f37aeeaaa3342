"""The byte-level BPE of OpenAI's CLIP, which DALLE-pytorch uses when no `--bpe_path` is given.

From "Learning Transferable Visual Models From Natural Language Supervision" (arXiv:2103.00020); the
vocabulary is OpenAI's file (MIT licence), 49408 tokens. Tables in pure Python load in less time than
those of the `tokenizers` library (0.11 s against 0.15 s), and its regular expressions know other
Unicode versions than the `regex` package that defines the ids.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Sequence
from pathlib import Path

import regex
import torch
from torch import Tensor

from dalle3.tokenizers.merges import Merges
from dalle3.tokenizers.text import well_formed

CONTEXT_LENGTH = 77  # tokens, of every CLIP that OpenAI published

_ASSET = Path(__file__).parents[1] / "assets" / "bpe_simple_vocab_16e6.txt.gz"
_ASSET_HEAD = 1 << 20  # the merges in use are the first half megabyte of the three
_NUM_BYTES = 256
_NUM_MERGES = 49408 - 2 * _NUM_BYTES - 2
_START, _END = 49406, 49407
_FRAMES = {"<|startoftext|>": (_START,), "<|endoftext|>": (_END,)}
_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CACHED_WORDS = 1 << 16


class ClipBPE:
    """CLIP's tokenizer with the ids of its `SimpleTokenizer`. Captions carry no start or end token."""

    kind = "clip_bpe"
    vocab_size = 49408

    def __init__(self) -> None:
        lines = _merge_lines()
        letters = _byte_letters()
        symbols = [*letters, *(f"{letter}</w>" for letter in letters), *(line.replace(" ", "") for line in lines)]
        ids = {symbol: i for i, symbol in enumerate(symbols)}
        parts = " ".join(lines).split(" ")
        pairs = zip((ids[part] for part in parts[::2]), (ids[part] for part in parts[1::2]), strict=True)
        ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self._merges = Merges(ranks, range(2 * _NUM_BYTES, 2 * _NUM_BYTES + _NUM_MERGES))
        self._symbols = symbols
        self._bytes = dict(zip(letters, _byte_order(), strict=True))
        self._byte_ids = {byte: i for i, byte in enumerate(_byte_order())}
        self._pattern = regex.compile(_WORD, regex.IGNORECASE)
        self._words: dict[str, tuple[int, ...]] = dict(_FRAMES)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, cleaned and in lower case; none is cut off, nothing is padded."""
        return [i for word in self._pattern.findall(clean(text)) for i in self._word(word)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, a space after each word, without padding, start and end tokens.

        Id 0 is also the "!" that another sign follows; it is lost, as in DALLE-pytorch. Its list of
        ids to leave out names 40407 where 49407, the end token, was meant; here it is the end token.
        """
        kept = [self._symbols[i] for i in ids if 0 < i < len(self._symbols)]
        letters = "".join(symbol.replace("</w>", " ") for symbol in kept)
        return bytes(self._bytes.get(letter, ord(" ")) for letter in letters).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Writes nothing: the vocabulary is part of this package."""

    def _word(self, word: str) -> tuple[int, ...]:
        found = self._words.get(word)
        if found is None:
            ids = [self._byte_ids[byte] for byte in word.encode()]
            ids[-1] += _NUM_BYTES  # the last byte of a word is a symbol of its own
            found = tuple(self._merges.apply(ids))
            if len(self._words) < _CACHED_WORDS:
                self._words[word] = found
        return found


def clip_context(tokenizer: ClipBPE, texts: Sequence[str], *, length: int = CONTEXT_LENGTH) -> Tensor:
    """What CLIP's text encoder reads: start, caption, end, then zeros, (B, length), int64.

    A caption that is too long loses its tail and keeps the end token, whose place CLIP looks at.
    """
    rows = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        ids = [_START, *tokenizer.encode(text)[: length - 2], _END]
        row[: len(ids)] = torch.tensor(ids)
    return rows


def clean(text: str) -> str:
    """`text` with its encoding mended, HTML entities resolved twice, single spaces, in lower case."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else ftfy and html change nothing
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(well_formed(text))))
    return regex.sub(r"\s+", " ", text.strip()).strip().lower()


def _merge_lines() -> list[str]:
    with gzip.open(_ASSET) as file:
        head = file.read(_ASSET_HEAD).decode("utf-8", errors="ignore")
    return head.split("\n", _NUM_MERGES + 1)[1 : _NUM_MERGES + 1]


def _byte_order() -> list[int]:
    """The 256 bytes in the order of their ids: those that are visible in Latin-1 first."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*visible, *(byte for byte in range(_NUM_BYTES) if byte not in visible)]


def _byte_letters() -> list[str]:
    """The letter that stands for each byte of `_byte_order` in the vocabulary file."""
    order = _byte_order()
    visible = order.index(0)
    return [*map(chr, order[:visible]), *(chr(_NUM_BYTES + i) for i in range(_NUM_BYTES - visible))]
