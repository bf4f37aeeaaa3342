"""Captions as rows of ids, the way training wants them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dalle3.errors import DataError, PromptError
from dalle3.files import read_lines
from dalle3.tokenizers.base import Tokenizer


def caption_rows(tokenizer: Tokenizer, captions: Sequence[str], length: int, *, truncate: bool) -> Tensor:
    """Captions as ids padded with 0, (B, length), int64; an empty caption is a row of zeros.

    Raises:
        PromptError: a caption is longer than `length` tokens and `truncate` is not set.
    """
    rows = torch.zeros(len(captions), length, dtype=torch.long)
    for row, caption in zip(rows, captions, strict=True):
        ids = tokenizer.encode(caption)
        if len(ids) > length and not truncate:
            raise PromptError(
                f"the caption {caption[:60]!r} is {len(ids)} tokens long and the model reads {length}; "
                "pass --truncate_captions, or a larger --text_seq_len to a new model"
            )
        row[: len(ids[:length])] = torch.tensor(ids[:length], dtype=torch.long)
    return rows


def read_captions(path: Path) -> list[str]:
    """The captions of a text file, one a line; empty lines do not count.

    Raises:
        DataError: it cannot be read, or holds none.
    """
    captions = [line.strip() for line in read_lines(path, flag="--captions") if line.strip()]
    if not captions:
        raise DataError(f"--captions {path} holds no caption; expected one a line")
    return captions


def drop_rows(rows: Tensor, probability: float, *, rng: torch.Generator) -> Tensor:
    """The rows (B, N) with each set to zeros, the null caption, with the given probability."""
    dropped = torch.rand(len(rows), generator=rng) < probability
    return rows.masked_fill(dropped[:, None], 0)
