"""Ids and texts of the originals: clip-anytorch 2.6.0, dalle-pytorch 1.6.6 and youtokentome 1.0.6."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dalle3.tokenizers.base import tokenize
from dalle3.tokenizers.clip_bpe import clip_context
from dalle3.tokenizers.load import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name):
    return torch.load(GOLDEN / name, weights_only=True)


@pytest.fixture(scope="module")
def clip_bpe():
    return load_tokenizer(None)


@pytest.fixture(scope="module")
def captions():
    fixture = golden("i_simple_hug.pt")
    return fixture["inputs"]["strings"], fixture["outputs"]


@pytest.fixture(scope="module")
def yttm():
    fixture = golden("h_yttm.pt")
    return load_tokenizer(GOLDEN / "h_yttm_bpe.model"), fixture["inputs"]["strings"], fixture["outputs"]


def hug(name):
    return load_tokenizer(GOLDEN / name, hug=True)


def test_clip_bpe_gives_the_ids_of_clip(clip_bpe):
    fixture = golden("g_clip_tokenize.pt")
    assert [clip_bpe.encode(prompt) for prompt in fixture["inputs"]["prompts"]] == fixture["outputs"]["encode"]


@pytest.mark.parametrize(("name", "length"), [("tokens", 77), ("tokens_ctx16", 16)])
def test_clip_context_is_the_tensor_of_clip_tokenize(clip_bpe, name, length):
    fixture = golden("g_clip_tokenize.pt")
    assert torch.equal(clip_context(clip_bpe, fixture["inputs"]["prompts"], length=length), fixture["outputs"][name])


def test_clip_bpe_decodes_as_clip_does_but_for_start_and_end(clip_bpe):
    outputs = golden("g_clip_tokenize.pt")["outputs"]
    expected = [text.replace("<|startoftext|>", "").replace("<|endoftext|>", "") for text in outputs["decode"]]
    assert [clip_bpe.decode(ids) for ids in outputs["encode"]] == expected


def test_clip_bpe_encodes_and_decodes_as_dalle_pytorch(clip_bpe, captions):
    strings, outputs = captions
    assert clip_bpe.vocab_size == outputs["simple_vocab_size"]
    assert [clip_bpe.encode(text) for text in strings] == outputs["simple_encode"]
    assert [clip_bpe.decode(ids) for ids in outputs["simple_encode"]] == outputs["simple_decode"]


@pytest.mark.parametrize(("name", "prefix"), [("i_hug_bpe.json", "hug"), ("i_hug_bpe_whitespace.json", "hug_ws")])
def test_hug_encodes_and_decodes_as_dalle_pytorch(captions, name, prefix):
    strings, outputs = captions
    tokenizer = hug(name)
    assert tokenizer.vocab_size == outputs[f"{prefix}_vocab_size"]
    assert [tokenizer.encode(text) for text in strings] == outputs[f"{prefix}_encode"]
    rows = outputs[f"{prefix}_tokenize_ctx32"].tolist()
    assert [tokenizer.decode(row) for row in rows] == outputs[f"{prefix}_decode"]


def test_youtokentome_gives_the_ids_of_youtokentome(yttm):
    tokenizer, strings, outputs = yttm
    assert tokenizer.vocab_size == outputs["vocab_size"]
    assert [tokenizer.encode(text) for text in strings] == outputs["ids"]


def test_youtokentome_decodes_as_youtokentome(yttm):
    tokenizer, _, outputs = yttm
    assert [tokenizer.decode(ids) for ids in outputs["ids"]] == outputs["decode"]


def test_padding_is_no_part_of_a_decoded_caption(yttm):
    tokenizer, _, outputs = yttm
    rows = outputs["dalle_tokenize_ctx32_truncate"].tolist()
    assert [[tokenizer.decode(row)] for row in rows] == outputs["dalle_decode"]


@pytest.mark.parametrize(
    ("prefix", "name"), [("simple", None), ("hug", "i_hug_bpe.json"), ("hug_ws", "i_hug_bpe_whitespace.json")]
)
def test_a_batch_of_captions_is_padded_as_dalle_pytorch_pads(captions, prefix, name):
    strings, outputs = captions
    tokenizer = load_tokenizer(None) if name is None else hug(name)
    pairs = zip(strings, outputs[f"{prefix}_tokenize_ctx32"], strict=True)
    for text, row in pairs:
        if tokenizer.encode(text):
            assert torch.equal(tokenize(tokenizer, [text], 32, truncate=True)[0], row)
