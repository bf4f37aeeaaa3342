"""LoRA adapters: beside a network, kept apart from it, and joined with it again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

import dalle3
from dalle3.assemble import Parts, assemble
from dalle3.checkpoint import Checkpoint, build, fingerprint, read_folder, save_checkpoint
from dalle3.convert.lora import joined
from dalle3.convert.roles import CLIP, DALLE, read_as
from dalle3.decoding import Decoder
from dalle3.errors import CheckpointError, ConfigError
from dalle3.models.dalle import Dalle, DalleConfig
from dalle3.models.dalle_lora import DalleLoraConfig, adapted
from dalle3.nn.lora import Adapters, add_lora, lora_layers, merge_lora
from dalle3.nn.names import matching
from dalle3.sampling import Sampling
from dalle3.train.tuning import LoraConfig
from tests.tiny import codec, dalle, tokenizer, write_model

CPU = torch.device("cpu")
ALL = ("to_qkv", "to_out", "up_gate", "down")


def network(**changes) -> Dalle:
    given = {"num_text_tokens": 11, "text_seq_len": 8, "num_image_tokens": 16, "image_grid": 4, "dim": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Dalle(DalleConfig(**{**given, "depth": 3, "heads": 2, "dim_head": 8, **changes}))


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(11, (2, 8), generator=rng), torch.randint(16, (2, 4, 4), generator=rng)


def trained(model: Dalle) -> Dalle:
    """`model` with adapters that change something."""
    rng = torch.Generator().manual_seed(1)
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_b, std=0.2, generator=rng)
    return model


@pytest.fixture
def base(tmp_path) -> Path:
    return write_model(tmp_path / "base")


def write_adapter(base: Path, folder: Path) -> Path:
    """An adapter of the DALLE in `base`, as a run of training leaves it."""
    found = read_folder(base)
    config = LoraConfig(lora_rank=2, lora_alpha=3.0).beside(found, base)
    model = trained(adapted(cast(Dalle, build(found, device=CPU)), config))
    adapter = Checkpoint(kind="dalle_lora", config=config, state=Adapters(model).state_dict())
    save_checkpoint(adapter, folder, tokenizer=tokenizer())
    return folder


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("layers.0", ["layers.0.fn.bias", "layers.0.fn.weight"]),
        ("fn", ["layers.0.fn.bias", "layers.0.fn.weight", "layers.01.fn.weight"]),
        ("*.bias", ["layers.0.fn.bias"]),
        ("layers.0*.weight", ["layers.0.fn.weight", "layers.01.fn.weight"]),
        ("layers.0.fn.weight", ["layers.0.fn.weight"]),
        ("ayers", []),
    ],
)
def test_a_pattern_stands_for_whole_parts_of_a_name(pattern, found):
    assert matching(["layers.0.fn.bias", "layers.0.fn.weight", "layers.01.fn.weight"], pattern) == found


def test_a_fresh_adapter_changes_nothing():
    expected = network()(*inputs())
    model = network()
    add_lora(model, ALL, rank=4, scale=2.0)
    assert len(lora_layers(model)) == 12
    assert torch.equal(model(*inputs()), expected)


def test_only_adapters_have_gradients():
    model = network()
    add_lora(model, ("to_qkv", "transformer.layers.0.1.fn.down"), rank=4, scale=2.0)
    trained(model).loss(*inputs())[0].backward()
    moved = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert len(moved) == 8
    assert all(name.endswith((".lora_a", ".lora_b")) for name in moved)


@pytest.mark.parametrize(
    "changes",
    [{}, {"shared_attn_ids": (0, 1, 0)}, {"reversible": True, "depth": 2}, {"share_input_output_emb": True}],
    ids=["plain", "shared", "reversible", "tied"],
)
def test_merged_is_the_same_as_apart(changes):
    model = network(**changes)
    targets = (*ALL, "to_logits") if "share_input_output_emb" in changes else ALL
    add_lora(model, targets, rank=4, scale=0.5)
    apart = trained(model)(*inputs())
    merged = merge_lora(model)
    assert merged.state_dict().keys() == network(**changes).state_dict().keys()
    seen = apart > -1e9
    assert (merged(*inputs()) - apart)[seen].abs().max() < 1e-6 * apart[seen].abs().max()
    assert (merged(*inputs()) - network(**changes)(*inputs()))[seen].abs().max() > 1e-3


def test_decoding_beside_an_adapter_is_decoding_with_it():
    model = network().eval()
    add_lora(model, ALL, rank=4, scale=0.5)
    text, _ = inputs()
    drawn = []
    for found in (trained(model), merge_lora(model)):
        decoder = Decoder(found)
        drawn.append(decoder.draw(decoder.read(text[0]), Sampling(), seed=0, indices=[0, 1]))
    assert torch.equal(*drawn)


def test_a_target_that_names_no_layer_is_one_line():
    with pytest.raises(ConfigError, match=r"'norm', which names no linear layer; there are down, to_logits, to_out"):
        add_lora(network(), ("to_qkv", "norm"), rank=4, scale=1.0)


def test_an_adapter_folder_is_a_whole_model_that_draws(base, tmp_path):
    adapter = write_adapter(base, tmp_path / "adapter")
    model = dalle3.load(adapter)
    given = dalle3.load(base, lora=adapter)
    assert fingerprint(model.dalle.state_dict()) == fingerprint(given.dalle.state_dict())
    assert fingerprint(model.dalle.state_dict()) != fingerprint(dalle3.load(base).dalle.state_dict())
    assert [type(layer) for layer in model.dalle.transformer.modules() if "Lora" in type(layer).__name__] == []
    assert (adapter / "model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size


def test_the_scale_is_how_strong_it_is(base, tmp_path):
    adapter = write_adapter(base, tmp_path / "adapter")
    name = "transformer.layers.0.0.fn.to_qkv.weight"
    plain, half, whole = (joined(adapter, scale=scale).state[name] for scale in (0.0, 0.5, 1.0))
    assert torch.equal(plain, read_folder(base).state[name])
    torch.testing.assert_close(half, (plain + whole) / 2)
    by_flag = assemble(Parts(dalle_path=adapter, lora_scale=0.5)).dalle
    assert torch.equal(by_flag.state_dict()[name], half)


def test_an_adapter_of_other_weights_is_one_line(base, tmp_path):
    adapter, other = write_adapter(base, tmp_path / "adapter"), tmp_path / "other"
    found = dalle(image_codec=codec())
    found.state["norm.weight"] += 1
    save_checkpoint(found, other, tokenizer=tokenizer())
    with pytest.raises(
        CheckpointError, match=r"adapter of the DALLE .*base \(sha256 \w{12}\), not of the dalle .*other"
    ):
        dalle3.load(other, lora=adapter)


def test_an_adapter_whose_dalle_moved_says_where_it_was_and_takes_it_by_flag(base, tmp_path):
    adapter = write_adapter(base, tmp_path / "adapter")
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(
        CheckpointError, match=r"adapter of .*base, which is not there; pass that DALLE \(sha256 \w{12}\)"
    ):
        dalle3.load(adapter)
    assert dalle3.load(moved, lora=adapter).dalle.config == read_folder(moved).config


def test_an_adapter_is_no_other_model(base, tmp_path):
    adapter = write_adapter(base, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"is a dalle_lora, not a CLIP, .* A LoRA adapter belongs to --lora"):
        read_as(adapter, CLIP, flag="--clip")
    with pytest.raises(CheckpointError, match="is a dalle, not a LoRA adapter"):
        dalle3.load(base, lora=base)
    assert read_as(adapter, DALLE, flag="--dalle_path").kind == "dalle"


def test_flags_of_adapters_that_contradict_are_one_line(base, tmp_path):
    adapter = write_adapter(base, tmp_path / "adapter")
    with pytest.raises(ConfigError, match="is a LoRA adapter, and --lora names one too"):
        dalle3.load(adapter, lora=adapter)
    with pytest.raises(ConfigError, match="--lora_scale is of use with a LoRA adapter only"):
        dalle3.load(base, lora_scale=0.5)
    with pytest.raises(ConfigError, match="need a --lora_rank"):
        LoraConfig(lora_merge=True)
    with pytest.raises(ConfigError, match="lora_rank is 2 and lora_alpha -1"):
        LoraConfig(lora_rank=2, lora_alpha=-1.0).beside(read_folder(base), base)


def test_the_adapters_config_says_all_there_is_to_it(base):
    config = LoraConfig(lora_rank=2).beside(read_folder(base), base)
    assert (config.alpha, config.base) == (2.0, read_folder(base).config)
    assert {field.name for field in dataclasses.fields(DalleLoraConfig)} >= {"rank", "base_path", "base_sha256"}
