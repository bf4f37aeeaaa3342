"""Which tokenizer the flags, or a checkpoint's config.json, name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dalle3.errors import CheckpointError, ConfigError
from dalle3.shipped import located
from dalle3.tokenizers.base import Tokenizer
from dalle3.tokenizers.bert import Bert
from dalle3.tokenizers.clip_bpe import ClipBPE
from dalle3.tokenizers.huggingface import HuggingFace
from dalle3.tokenizers.text import read_text
from dalle3.tokenizers.youtokentome import YouTokenToMe, looks_like_youtokentome

_READERS = {reader.kind: reader for reader in (YouTokenToMe, HuggingFace, Bert)}
_FILES = {"youtokentome": "bpe.model", "huggingface": "tokenizer.json", "bert": "tokenizer.json"}


def load_tokenizer(path: Path | str | None, *, hug: bool = False, chinese: bool = False) -> Tokenizer:
    """The tokenizer that `--bpe_path`, `--hug` and `--chinese` name, CLIP's where there are none.

    Args:
        path: a youtokentome model; with `hug` a `tokenizers` JSON; with `chinese` a folder or file of
            a BERT, which is bert-base-chinese of the hub where `path` is None.
    Raises:
        ConfigError: flags that contradict each other.
        CheckpointError: a file that is missing, broken, or of another kind than the flags say.
    """
    if hug and chinese:
        raise ConfigError("--hug and --chinese name two tokenizers; leave one out")
    if path is None:
        if hug:
            raise ConfigError("--hug needs the tokenizers JSON to read; name it with --bpe_path")
        return Bert.from_hub() if chinese else ClipBPE()
    path = Path(path)
    if chinese:
        return Bert.load(path)
    _check_kind(path, hug=hug)
    return HuggingFace.load(path) if hug else YouTokenToMe.load(path)


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """What config.json says of a tokenizer: kind, vocab_size and, where `save` writes one, its file."""
    described = {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size}
    return described | ({"file": _FILES[tokenizer.kind]} if tokenizer.kind in _FILES else {})


def read_tokenizer(folder: Path, info: dict[str, Any]) -> Tokenizer:
    """The tokenizer that was saved into a checkpoint folder and described by `info`.

    Raises:
        CheckpointError: an unknown kind, a file that is missing or broken, or another vocabulary.
    """
    folder, kind = located(folder), str(info.get("kind"))
    if kind == ClipBPE.kind:
        tokenizer = ClipBPE()
    elif kind in _READERS:
        tokenizer = _READERS[kind].load(folder / _FILES[kind])
    else:
        kinds = ", ".join((ClipBPE.kind, *_READERS))
        raise CheckpointError(f"{folder}: a tokenizer of kind {kind!r} is unknown; this version reads {kinds}")
    if tokenizer.vocab_size != info.get("vocab_size"):
        raise CheckpointError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens and config.json says {info.get('vocab_size')}; "
            "the two come from different models: copy the folder again"
        )
    return tokenizer


def _check_kind(path: Path, *, hug: bool) -> None:
    text = read_text(path)
    if hug and looks_like_youtokentome(text):
        raise CheckpointError(f"{path} is a youtokentome model, not a tokenizers JSON; leave --hug out")
    if not hug and text.lstrip().startswith("{"):
        raise CheckpointError(f"{path} is a JSON, not a youtokentome model; pass --hug to read a tokenizers JSON")
