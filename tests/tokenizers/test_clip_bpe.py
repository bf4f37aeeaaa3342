from __future__ import annotations

import html
import pickle

import ftfy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle3.tokenizers.clip_bpe import ClipBPE, clean, clip_context
from tests.tokenizers import ANY_TEXT

TOKENIZER = ClipBPE()
WORDS = st.lists(st.from_regex(r"[a-z]{1,20}|[\u4e00-\u9fa5]{1,5}|[0-9]", fullmatch=True), max_size=8)


@given(words=WORDS)
def test_decoding_gives_the_words_back_each_with_a_space(words):
    ids = TOKENIZER.encode(" ".join(words))
    assert TOKENIZER.decode(ids) == "".join(f"{word} " for word in words)


@given(text=ANY_TEXT)
def test_any_text_has_ids_within_the_vocabulary(text):
    ids = TOKENIZER.encode(text)
    assert all(0 <= i < TOKENIZER.vocab_size for i in ids)
    assert isinstance(TOKENIZER.decode(ids), str)


@given(text=st.text(st.characters(max_codepoint=126), max_size=40))
def test_plain_text_is_cleaned_as_ftfy_and_html_clean_it(text):
    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    assert clean(text) == " ".join(mended.lower().split())


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A  Cat", "a cat"),
        ("&amp;lt;", "<"),
        ("schÃ¶n", "schön"),
        ("\ttab\n", "tab"),
        ("\ud800", "\ufffd"),
        ("\ud83d\ude00", "😀"),
    ],
)
def test_captions_are_cleaned_before_they_are_tokenized(text, cleaned):
    assert clean(text) == cleaned


def test_a_second_encoding_of_a_word_is_that_of_the_first():
    fresh = ClipBPE()
    assert fresh.encode("armchairavocado") == fresh.encode("armchairavocado") == TOKENIZER.encode("armchairavocado")


def test_a_word_of_ten_thousand_letters_is_tokenized():
    assert len(TOKENIZER.encode("ab" * 5000)) > 1000


def test_it_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(TOKENIZER)).encode("a cat") == [320, 2368]


def test_a_long_caption_keeps_clips_end_token():
    row = clip_context(TOKENIZER, ["a " * 100])[0]
    assert row[0] == 49406
    assert row[-1] == 49407


def test_ids_beyond_the_vocabulary_are_padding():
    assert TOKENIZER.decode([320, 0, 2368, 49406, 49407, 49408, 60000]) == "a cat "
