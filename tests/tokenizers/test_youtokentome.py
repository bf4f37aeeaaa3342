from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle3.errors import CheckpointError
from dalle3.tokenizers.youtokentome import YouTokenToMe
from tests.tokenizers import ANY_TEXT

MODEL = (Path(__file__).parents[1] / "golden" / "h_yttm_bpe.model").read_text()
TOKENIZER = YouTokenToMe(MODEL)


@given(words=st.lists(st.text("abcdefghilmnoprstuvwy", min_size=1), max_size=6))
def test_words_of_known_letters_come_back(words):
    text = " ".join(words)
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(text=ANY_TEXT)
def test_any_text_has_ids_within_the_vocabulary(text):
    ids = TOKENIZER.encode(text)
    assert all(0 < i < TOKENIZER.vocab_size for i in ids)
    assert isinstance(TOKENIZER.decode(ids), str)


def test_a_run_of_unknown_characters_is_one_unknown_token():
    assert TOKENIZER.encode("QZ") == [4, 1]


def test_a_word_of_ten_thousand_letters_is_tokenized():
    assert TOKENIZER.decode(TOKENIZER.encode("ab" * 5000)) == "ab" * 5000


def test_the_saved_file_is_the_one_that_was_read(tmp_path):
    TOKENIZER.save(tmp_path)
    assert (tmp_path / "bpe.model").read_text() == MODEL


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[:500], "cut short"),
        (lambda text: text.rstrip()[:-2], "4 numbers were expected"),
        (lambda text: "words\n" + text, "first line"),
        (lambda text: text.replace("9601 4\n", "x 4\n"), "2 numbers were expected in the line 'x 4'"),
        (lambda text: text.replace("9601 4\n", "99999999 4\n"), "no character"),
        (lambda text: text.replace("9601 4\n", "9601 5\n"), "uses a token that no line before it makes"),
        (lambda text: text.replace("1 0 2 3", "-1 0 2 3"), "no unknown token"),
        (lambda text: text.replace("1 0 2 3", "1 0 2 9"), "each once"),
    ],
)
def test_a_damaged_model_is_refused_with_the_reason(tmp_path, change, says):
    assert change(MODEL) != MODEL
    path = tmp_path / "bpe.model"
    path.write_text(change(MODEL))
    with pytest.raises(CheckpointError, match=says):
        YouTokenToMe.load(path)
