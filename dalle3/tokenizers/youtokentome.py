"""youtokentome's `bpe.model`, read without youtokentome.

The file is text: a line with the number of characters n and of merges m; n lines `code point, id`; m
lines `left id, right id, new id`; a line with the ids of the unknown, padding, start and end tokens,
-1 for one the model does not have.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dalle3.errors import CheckpointError
from dalle3.files import whole_file
from dalle3.tokenizers.merges import Merges
from dalle3.tokenizers.text import read_text

_SPACE = "\u2581"  # begins each word
_BLANKS = str.maketrans(dict.fromkeys(f"\t\n\v\f\r{_SPACE}", " "))  # isspace of C, not of Unicode
_SPECIALS = ("<UNK>", "<PAD>", "<BOS>", "<EOS>")
_CACHED_WORDS = 1 << 16


class YouTokenToMe:
    """A youtokentome model: the ids of `youtokentome.BPE.encode`, without start and end tokens."""

    kind = "youtokentome"

    def __init__(self, model: str) -> None:
        """Takes the text of a model file.

        Raises:
            ValueError: it is not one; the message says what is wrong.
        """
        parsed = _parse(model)
        self._model = model
        self._alphabet = parsed.alphabet
        self._unknown = parsed.specials["<UNK>"]
        self._pieces = parsed.pieces
        ranks = {(left, right): rank for rank, (left, right, _) in enumerate(parsed.merges)}
        self._merges = Merges(ranks, [new for _, _, new in parsed.merges])
        self._words: dict[str, tuple[int, ...]] = {}
        self.vocab_size = len(self._pieces)

    @classmethod
    def load(cls, path: Path) -> YouTokenToMe:
        """The tokenizer of a model file.

        Raises:
            CheckpointError: missing, not text, not a youtokentome model, or cut short.
        """
        text = read_text(path)
        try:
            return cls(text)
        except ValueError as error:
            raise CheckpointError(
                f"{path} is not a whole youtokentome model ({error}); copy it again, or train the tokenizer again"
            ) from None

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; a run of characters the model does not know is one unknown token."""
        words = text.translate(_BLANKS).split(" ")
        return [i for word in words if word for i in self._word(word)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without padding and without what is not in the vocabulary."""
        pieces = [self._pieces[i] for i in ids if i != 0 and i in self._pieces]
        spaced = [" " + piece[1:] if piece.startswith(_SPACE) else piece for piece in pieces]
        return "".join(spaced).removeprefix(" ")

    def save(self, folder: Path) -> None:
        """Writes the model file into `folder` as `bpe.model`."""
        with whole_file(folder / "bpe.model") as path:
            path.write_text(self._model, encoding="utf-8")

    def _word(self, word: str) -> tuple[int, ...]:
        found = self._words.get(word)
        if found is None:
            found = tuple(self._merges.apply(self._symbols(_SPACE + word)))
            if len(self._words) < _CACHED_WORDS:
                self._words[word] = found
        return found

    def _symbols(self, word: str) -> list[int]:
        ids = [self._alphabet.get(letter, self._unknown) for letter in word]
        return [i for i, before in zip(ids, [None, *ids], strict=False) if not i == before == self._unknown]


def looks_like_youtokentome(text: str) -> bool:
    """Whether `text` begins as a youtokentome model does, with a line of two counts."""
    head = text[:64].split("\n")[0].split()
    return len(head) == 2 and all(number.isdecimal() for number in head)


@dataclass(frozen=True)
class _Model:
    alphabet: dict[str, int]
    merges: list[tuple[int, int, int]]  # left, right, new
    specials: dict[str, int]  # only those the model has
    pieces: dict[int, str]  # every id's text


def _parse(text: str) -> _Model:
    if not looks_like_youtokentome(text):
        raise ValueError("its first line is not the number of characters and of merges")
    lines = text.strip().split("\n")
    num_letters, num_merges = _rows(lines[:1], 2)[0]
    first_merge, last = 1 + num_letters, 1 + num_letters + num_merges
    if len(lines) <= last:
        raise ValueError(f"{last + 1} lines were expected and {len(lines)} found: it is cut short")
    alphabet = {_letter(point): i for point, i in _rows(lines[1:first_merge], 2)}
    merges = [(left, right, new) for left, right, new in _rows(lines[first_merge:last], 3)]
    ids = _rows(lines[last : last + 1], 4)[0]
    specials = {name: i for name, i in zip(_SPECIALS, ids, strict=True) if i >= 0}
    if "<UNK>" not in specials:
        raise ValueError("it has no unknown token")
    pieces = _pieces(alphabet, merges, specials)
    if sorted(pieces) != [*range(num_letters + num_merges + len(specials))]:
        raise ValueError("its ids are not all the numbers from 0 on, each once")
    return _Model(alphabet, merges, specials, pieces)


def _rows(lines: Sequence[str], width: int) -> list[list[int]]:
    rows = [line.split() for line in lines]
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width or not all(word.removeprefix("-").isdecimal() for word in row):
            raise ValueError(f"{width} numbers were expected in the line {line[:40]!r}")
    return [[int(word) for word in row] for row in rows]


def _letter(point: int) -> str:
    if not 0 <= point <= sys.maxunicode:
        raise ValueError(f"{point} is no character")
    return chr(point)


def _pieces(alphabet: dict[str, int], merges: list[tuple[int, int, int]], specials: dict[str, int]) -> dict[int, str]:
    pieces = {i: letter for letter, i in alphabet.items()}
    for left, right, new in merges:
        if left not in pieces or right not in pieces:
            raise ValueError(f"the merge of {left} and {right} uses a token that no line before it makes")
        pieces[new] = pieces[left] + pieces[right]
    return pieces | {i: name for name, i in specials.items()}
