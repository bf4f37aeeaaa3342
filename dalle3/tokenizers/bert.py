"""The WordPiece of BERT, which DALLE-pytorch uses for Chinese (`--chinese`, bert-base-chinese)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dalle3.errors import CheckpointError
from dalle3.files import whole_file
from dalle3.tokenizers.huggingface import ids_of, read_json
from dalle3.tokenizers.text import read_text

if TYPE_CHECKING:
    import tokenizers

HUB_NAME = "bert-base-chinese"

_SPECIALS = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")


class Bert:
    """BERT's tokenizer with the ids of `BertTokenizer.encode(text, add_special_tokens=False)`."""

    kind = "bert"

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=False)

    @classmethod
    def load(cls, path: Path) -> Bert:
        """The tokenizer of a folder with `tokenizer.json` or `vocab.txt`, or of one of these files.

        Raises:
            CheckpointError: missing, not text, or not a WordPiece vocabulary.
        """
        file = _file_of(path)
        tokenizer = read_json(file) if file.suffix == ".json" else _from_vocabulary(file)
        if type(tokenizer.model).__name__ != "WordPiece":
            raise CheckpointError(f"{file} is not the tokenizer of a BERT; without --chinese, --hug reads it")
        return cls(tokenizer)

    @classmethod
    def from_hub(cls, name: str = HUB_NAME) -> Bert:
        """The tokenizer of a model on the Hugging Face hub, or of the hub's cache on this machine.

        Raises:
            CheckpointError: it cannot be fetched.
        """
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_pretrained(name))
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(
                f"{name} could not be fetched from the Hugging Face hub ({str(error).splitlines()[0]}); "
                "give a folder with its vocab.txt as --bpe_path"
            ) from None

    def encode(self, text: str) -> list[int]:
        """The ids of `text`.

        Raises:
            PromptError: the file has no token for what is in `text`, nor one for the unknown.
        """
        return ids_of(self._tokenizer, text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without padding, a space between words and between Chinese characters."""
        return self._tokenizer.decode([i for i in ids if 0 < i < self.vocab_size], skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` into `folder`."""
        with whole_file(folder / "tokenizer.json") as path:
            self._tokenizer.save(str(path))


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("tokenizer.json", "vocab.txt"):
        if (path / name).exists():
            return path / name
    raise CheckpointError(f"{path} holds neither tokenizer.json nor vocab.txt; give the folder of a BERT")


def _from_vocabulary(path: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(read_text(path).removesuffix("\n").split("\n"))}
    if "[UNK]" not in vocabulary:
        raise CheckpointError(f"{path} has no line [UNK], so it is not the vocab.txt of a BERT; give one that is")
    settings = _settings(path.with_name("tokenizer_config.json"))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", False),  # as bert-base-chinese has it
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens([word for word in _SPECIALS if word in vocabulary])
    return tokenizer


def _settings(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        settings = json.loads(read_text(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); copy it again, or remove it") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds no settings; copy it again, or remove it")
    return settings
