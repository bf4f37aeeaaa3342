from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from dalle3.errors import CheckpointError, ConfigError
from dalle3.tokenizers.huggingface import HuggingFace
from dalle3.tokenizers.load import describe, load_tokenizer, read_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
YTTM, HUG, NO_BERT = GOLDEN / "h_yttm_bpe.model", GOLDEN / "i_hug_bpe.json", "is not the tokenizer of a BERT"
KINDS = [(None, False), (YTTM, False), (HUG, True)]


@pytest.mark.parametrize(
    ("path", "hug", "expected"),
    [
        (None, False, {"kind": "clip_bpe", "vocab_size": 49408}),
        (YTTM, False, {"kind": "youtokentome", "vocab_size": 307, "file": "bpe.model"}),
        (HUG, True, {"kind": "huggingface", "vocab_size": 500, "file": "tokenizer.json"}),
    ],
)
def test_the_flags_name_the_tokenizer(path, hug, expected):
    assert describe(load_tokenizer(path, hug=hug)) == expected


@pytest.mark.parametrize(("path", "hug"), KINDS)
def test_a_saved_tokenizer_is_read_back(tmp_path, path, hug):
    tokenizer = load_tokenizer(path, hug=hug)
    tokenizer.save(tmp_path)
    read = read_tokenizer(tmp_path, describe(tokenizer))
    assert describe(read) == describe(tokenizer)
    assert read.encode("a Cat, 猫 😀") == tokenizer.encode("a Cat, 猫 😀")


@pytest.mark.parametrize(("path", "hug"), KINDS)
def test_every_tokenizer_can_be_sent_to_a_worker(path, hug):
    tokenizer = load_tokenizer(path, hug=hug)
    assert pickle.loads(pickle.dumps(tokenizer)).encode("a cat") == tokenizer.encode("a cat")


def test_a_bert_is_saved_and_read_back(tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n猫\n", encoding="utf-8")
    tokenizer = load_tokenizer(vocabulary, chinese=True)
    tokenizer.save(tmp_path)
    assert read_tokenizer(tmp_path, describe(tokenizer)).encode("猫 cat") == [2, 1]


@pytest.mark.parametrize(
    ("path", "flags", "says"),
    [
        (None, {"hug": True}, "--hug needs"),
        (HUG, {"hug": True, "chinese": True}, "leave one out"),
        (YTTM, {"hug": True}, "leave --hug out"),
        (HUG, {}, "pass --hug"),
        (HUG, {"chinese": True}, NO_BERT),
        (YTTM, {"chinese": True}, r"no line \[UNK\]"),
        (GOLDEN, {}, "is a folder"),
        ("nowhere.model", {}, "does not exist"),
        (GOLDEN / "h_yttm.pt", {}, "is a binary file"),
        (GOLDEN / "h_yttm.pt", {"hug": True}, "is a binary file"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(path, flags, says):
    with pytest.raises((CheckpointError, ConfigError), match=says) as raised:
        load_tokenizer(path, **flags)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("flags", [{}, {"hug": True}, {"chinese": True}])
@pytest.mark.parametrize(("content", "says"), [(b"", "is empty"), (b"\x80\x04\xff\x00", "is a binary file")])
def test_files_that_are_no_text_are_refused(tmp_path, flags, content, says):
    path = tmp_path / "bpe.model"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        load_tokenizer(path, **flags)


@pytest.mark.parametrize(("source", "flags", "says"), [(YTTM, {}, "cut short"), (HUG, {"hug": True}, "not a whole")])
def test_half_a_file_is_refused(tmp_path, source, flags, says):
    path = tmp_path / source.name
    path.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=says):
        load_tokenizer(path, **flags)


def test_a_checkpoint_with_an_unknown_kind_of_tokenizer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="'sentencepiece' is unknown"):
        read_tokenizer(tmp_path, {"kind": "sentencepiece", "vocab_size": 8})


def test_a_checkpoint_without_its_tokenizer_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"bpe\.model does not exist"):
        read_tokenizer(tmp_path, {"kind": "youtokentome", "vocab_size": 307})


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    HuggingFace.load(HUG).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"500 tokens and config\.json says 8192"):
        read_tokenizer(tmp_path, {"kind": "huggingface", "vocab_size": 8192})
