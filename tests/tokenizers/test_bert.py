from __future__ import annotations

import json

import pytest
from hypothesis import given, settings

from dalle3.errors import CheckpointError
from dalle3.tokenizers.bert import Bert
from tests.tokenizers import ANY_TEXT

WORDS = [
    "[PAD]",
    "[unused1]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"红色的猫在桌子上。!a",
    "cat",
    "##s",
    "re",
    "##d",
    "on",
]
TEXTS = [
    "红色的猫",
    "红色 cats!",
    "a red cat on 桌子",
    "[MASK] 猫",
    "Cat CAT",
    "é 😀",
    "",
    "   ",
    "cat " * 600,
    "\u200b猫\ufeff",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    return folder


@pytest.mark.parametrize("lower", [False, True])
def test_ids_and_texts_are_those_of_transformers(tmp_path, folder, lower):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    reference, tokenizer = transformers.BertTokenizer.from_pretrained(tmp_path), Bert.load(tmp_path)
    assert tokenizer.vocab_size == reference.vocab_size
    for text in TEXTS:
        ids = reference.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == (reference.decode(ids) if ids else "")


def test_letters_keep_their_case_as_in_bert_base_chinese(folder):
    tokenizer = Bert.load(folder)
    assert tokenizer.encode("cat Cat") == [WORDS.index("cat"), WORDS.index("[UNK]")]


def test_each_chinese_character_is_a_word(folder):
    assert Bert.load(folder).encode("红色的猫") == [WORDS.index(letter) for letter in "红色的猫"]


def test_padding_is_left_out_of_the_text(folder):
    assert Bert.load(folder).decode([WORDS.index("re"), WORDS.index("##d"), 0, 0]) == "red"


@settings(max_examples=50)
@given(text=ANY_TEXT)
def test_any_text_has_ids_within_the_vocabulary(folder, text):
    tokenizer = Bert.load(folder)
    assert all(0 <= i < tokenizer.vocab_size for i in tokenizer.encode(text))


def test_the_folder_and_its_files_are_read_alike(tmp_path, folder):
    tokenizer = Bert.load(folder)
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json", folder / "vocab.txt"):
        assert [Bert.load(path).encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_a_folder_without_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds neither"):
        Bert.load(tmp_path)


def test_a_list_of_words_that_is_no_vocabulary_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("one\ntwo\n")
    with pytest.raises(CheckpointError, match=r"no line \[UNK\]"):
        Bert.load(tmp_path)


def test_settings_that_are_no_json_are_refused(tmp_path, folder):
    (tmp_path / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        Bert.load(tmp_path)
