"""What every text tokenizer offers, and how captions become the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dalle3.errors import PromptError
from dalle3.log import warn


class Tokenizer(Protocol):
    """Text to ids and back, as the original of its kind does it. Id 0 is padding."""

    kind: str  # the name in config.json: "clip_bpe", "youtokentome", "huggingface", "bert"
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without padding."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, padding left out."""
        ...

    def save(self, folder: Path) -> None:
        """Writes into a checkpoint folder what `load` of this kind needs to read it back."""
        ...


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], length: int, *, truncate: bool = False) -> Tensor:
    """Captions as ids padded with 0, (B, length), int64.

    Raises:
        PromptError: a text is empty, or longer than `length` tokens and `truncate` is not set.
    """
    rows = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer.encode(text)
        if not ids:
            raise PromptError(f"the prompt {text!r} holds no words; write what the picture should show")
        if len(ids) > length:
            ids = _shorten(ids, length, text, truncate=truncate)
        row[: len(ids)] = torch.tensor(ids)
    return rows


def vocabulary(tokenizer: Tokenizer) -> list[str]:
    """What each id from 1 on stands for: with the same, two tokenizers mean the same by their ids."""
    return [tokenizer.decode([number]) for number in range(1, tokenizer.vocab_size)]


def _shorten(ids: list[int], length: int, text: str, *, truncate: bool) -> list[int]:
    found = f"the prompt {text[:60]!r} is {len(ids)} tokens long and the model reads {length}"
    if not truncate:
        raise PromptError(f"{found}; shorten it or pass --truncate_captions")
    warn(f"{found}; the rest is left out")
    return ids[:length]
