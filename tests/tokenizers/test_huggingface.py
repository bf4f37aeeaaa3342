from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle3.errors import ConfigError, DataError, PromptError
from dalle3.tokenizers.huggingface import HuggingFace, train_bpe
from tests.tokenizers import ANY_TEXT

GOLDEN = Path(__file__).parents[1] / "golden"
COLOURS, SHAPES = ("red", "blue", "green", "Yellow"), ("circle", "square", "triangle")
CAPTIONS = [f"A {colour} {shape}, on  {ground}." for colour in COLOURS for shape in SHAPES for ground in COLOURS]
TRAINED = train_bpe(CAPTIONS, 120)
TRAIN = "from tests.tokenizers.test_huggingface import *; print([TRAINED.encode(caption) for caption in CAPTIONS])"


@pytest.mark.parametrize("name", ["i_hug_bpe.json", "i_hug_bpe_whitespace.json"])
@given(text=ANY_TEXT)
def test_any_text_has_ids_within_the_vocabulary(name, text):
    tokenizer = HuggingFace.load(GOLDEN / name)
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert isinstance(tokenizer.decode(ids), str)


def test_the_special_tokens_of_the_files_post_processor_are_not_added(tmp_path):
    settings = json.loads((GOLDEN / "i_hug_bpe.json").read_text())
    settings["post_processor"] = {"type": "BertProcessing", "sep": ["[UNK]", 1], "cls": ["[PAD]", 0]}
    path = tmp_path / "framed.json"
    path.write_text(json.dumps(settings))
    assert HuggingFace.load(path).encode("a cat") == HuggingFace.load(GOLDEN / "i_hug_bpe.json").encode("a cat")


def test_a_text_without_tokens_is_a_prompt_error(tmp_path):
    path = tmp_path / "words.json"
    model = {"type": "WordLevel", "vocab": {"cat": 0}, "unk_token": "[UNK]"}
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with pytest.raises(PromptError, match="use other words"):
        HuggingFace.load(path).encode("zebra")


@given(st.lists(st.sampled_from([*COLOURS, *SHAPES, "a", "on", ",", "."]), max_size=8))
def test_trained_on_captions_it_gives_their_words_back(words):
    text = " ".join(words)
    assert TRAINED.decode(TRAINED.encode(text)) == text.lower()


def test_words_of_the_captions_become_one_token_each():
    assert len(TRAINED.encode("a yellow triangle")) == 3


def test_training_reserves_id_zero_for_padding_and_the_unknown():
    ids = [i for caption in CAPTIONS for i in TRAINED.encode(caption)]
    assert 0 not in ids
    assert max(ids) < TRAINED.vocab_size <= 120
    assert TRAINED.encode("A 日 circle")[-2] == 0


def test_training_twice_gives_the_same_tokenizer():
    runs = [subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, check=True).stdout for _ in range(2)]
    assert runs[0] == runs[1] == f"{[TRAINED.encode(caption) for caption in CAPTIONS]}\n".encode()


def test_a_trained_tokenizer_is_saved_and_read_back(tmp_path):
    TRAINED.save(tmp_path)
    read = HuggingFace.load(tmp_path / "tokenizer.json")
    assert [read.encode(caption) for caption in CAPTIONS] == [TRAINED.encode(caption) for caption in CAPTIONS]
    assert read.decode(read.encode("a red circle")) == "a red circle"


def test_a_vocabulary_smaller_than_the_captions_letters_is_refused():
    with pytest.raises(ConfigError, match="a vocabulary of 5 is too small"):
        train_bpe(CAPTIONS, 5)


@pytest.mark.parametrize("captions", [[], ["", "  "]])
def test_captions_without_words_are_refused(captions):
    with pytest.raises(DataError, match="hold no words"):
        train_bpe(captions, 100)
