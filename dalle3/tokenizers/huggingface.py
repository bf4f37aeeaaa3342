"""Tokenizers of the `tokenizers` library, from its JSON files (`--hug`) or trained here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dalle3.errors import CheckpointError, ConfigError, DataError, PromptError
from dalle3.files import whole_file
from dalle3.tokenizers.text import read_text, well_formed

if TYPE_CHECKING:
    import tokenizers

_PADDING = "<pad>"


class HuggingFace:
    """A `tokenizers` JSON as DALLE-pytorch's HugTokenizer uses it: without the file's post-processor."""

    kind = "huggingface"

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        from tokenizers.processors import ByteLevel

        tokenizer.post_processor = ByteLevel(trim_offsets=True)
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size()

    @classmethod
    def load(cls, path: Path) -> HuggingFace:
        """The tokenizer of a JSON file.

        Raises:
            CheckpointError: missing, not text, or not a `tokenizers` JSON.
        """
        return cls(read_json(path))

    def encode(self, text: str) -> list[int]:
        """The ids of `text`.

        Raises:
            PromptError: the file has no token for what is in `text`, nor one for the unknown.
        """
        return ids_of(self._tokenizer, text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without padding and special tokens."""
        return self._tokenizer.decode([i for i in ids if 0 < i < self.vocab_size], skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` into `folder`."""
        with whole_file(folder / "tokenizer.json") as path:
            self._tokenizer.save(str(path))


def train_bpe(captions: Iterable[str], vocab_size: int) -> HuggingFace:
    """A byte-level BPE learnt from `captions`, in lower case and with single spaces.

    Id 0 is padding, and what a byte that no caption holds becomes: left out of the vocabulary, such
    bytes leave a small one to words (8.6 tokens a caption in place of 26.7 at 300 tokens). The same
    captions give the same tokenizer.

    Args:
        vocab_size: the most tokens it may have; fewer where the captions hold fewer different words.
    Raises:
        ConfigError: the captions hold more different bytes than `vocab_size`.
        DataError: the captions hold no words.
    """
    from tokenizers import trainers

    tokenizer = _blank_bpe()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[_PADDING], show_progress=False)
    tokenizer.train_from_iterator(map(well_formed, captions), trainer)
    found = tokenizer.get_vocab_size()
    if found == 1:
        raise DataError("the captions hold no words; a tokenizer needs some to learn from")
    if found > vocab_size:
        raise ConfigError(f"a vocabulary of {vocab_size} is too small: the captions need {found} tokens or more")
    return HuggingFace(tokenizer)


def _blank_bpe() -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(unk_token=_PADDING, fuse_unk=True))
    steps = [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def read_json(path: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer of a JSON file.

    Raises:
        CheckpointError: missing, not text, or not a `tokenizers` JSON.
    """
    from tokenizers import Tokenizer

    text = read_text(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(
            f"{path} is not a whole tokenizers JSON ({str(error).splitlines()[0]}); "
            "give the tokenizer.json that the tokenizers library saved"
        ) from None


def ids_of(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """The ids of `text`, without the special tokens that a post-processor adds.

    Raises:
        PromptError: there is no token for what is in `text`, nor one for the unknown.
    """
    try:
        return tokenizer.encode(well_formed(text), add_special_tokens=False).ids
    except Exception as error:  # the library raises nothing narrower
        raise PromptError(f"the prompt {text[:60]!r} cannot be tokenized ({error}); use other words") from None
