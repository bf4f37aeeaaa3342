"""Text as the tokenizers take it, and the files of theirs that are text."""

from __future__ import annotations

from pathlib import Path

from dalle3.errors import CheckpointError


def well_formed(text: str) -> str:
    """`text` with every surrogate that stands alone replaced by U+FFFD, so that it has a UTF-8 form.

    Python makes such strings of command lines and file names that are not UTF-8.
    """
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def read_text(path: Path) -> str:
    """The text of a tokenizer's file.

    Raises:
        CheckpointError: it is missing, a folder, empty, unreadable, or not text.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the tokenizer's file in it")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist; give the file of the tokenizer the model was trained with"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    except UnicodeDecodeError:
        raise CheckpointError(
            f"{path} is a binary file; a tokenizer is a text file: a youtokentome model or a tokenizers JSON"
        ) from None
    if not text.strip():
        raise CheckpointError(f"{path} is empty; the file of a tokenizer was expected: copy or download it again")
    return text
