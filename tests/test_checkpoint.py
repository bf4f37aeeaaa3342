"""The checkpoint folder: what is written is what is read, and what does not fit is said."""

from __future__ import annotations

import dataclasses
import errno
import json
import subprocess
import sys
import threading

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from dalle3 import checkpoint as module
from dalle3.checkpoint import (
    Checkpoint,
    Source,
    build,
    describe_codec,
    fingerprint,
    is_checkpoint,
    read_folder,
    save_checkpoint,
)
from dalle3.errors import CheckpointError, OutputError
from dalle3.models.dalle import Dalle, DalleConfig
from dalle3.models.openai_dvae import OpenAIDiscreteVAE, OpenAIDiscreteVAEConfig
from dalle3.models.vqgan import VQGAN, GumbelVQ, GumbelVQConfig, VQGANConfig
from dalle3.sampling import Recommended
from tests import tiny

CPU = torch.device("cpu")
SMALL = {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "z_channels": 8, "embed_dim": 8, "attn_resolutions": ()}
MIXED = DalleConfig(
    num_text_tokens=9,
    text_seq_len=4,
    num_image_tokens=6,
    image_grid=2,
    dim=8,
    depth=4,
    heads=1,
    dim_head=8,
    attn_types=("full", "axial_row"),
    shared_attn_ids=(0, 1),
    shared_ff_ids=(0,),
)


def models() -> list[Checkpoint]:
    return [
        tiny.dalle(image_codec=None),
        tiny.codec(),
        tiny.clip(),
        tiny.checkpoint("dalle", MIXED, Dalle),
        tiny.checkpoint("vqgan", VQGANConfig(num_tokens=5, **SMALL), VQGAN),
        tiny.checkpoint("gumbel_vq", GumbelVQConfig(num_tokens=5, **SMALL), GumbelVQ),
        tiny.checkpoint(
            "openai_dvae",
            OpenAIDiscreteVAEConfig(num_tokens=5, n_hid=4, n_init=4, n_blk_per_group=1),
            OpenAIDiscreteVAE,
        ),
    ]


@pytest.mark.parametrize("original", models(), ids=lambda c: c.kind)
def test_a_folder_gives_back_what_was_saved(tmp_path, original):
    save_checkpoint(original, tmp_path / "a")
    found = read_folder(tmp_path / "a")
    assert (found.kind, found.config) == (original.kind, original.config)
    assert found.state.keys() == original.state.keys()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in original.state.items())


@pytest.mark.parametrize("original", models(), ids=lambda c: c.kind)
def test_a_built_network_has_the_weights_and_every_buffer(original):
    reference = module.KINDS[original.kind]
    network = build(original, device=CPU)
    fresh = getattr(__import__(reference[0], fromlist=["_"]), reference[2])(original.config)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in original.state.items())
    assert all(torch.equal(own, other) for own, other in zip(network.buffers(), fresh.buffers(), strict=True))
    assert not network.training
    assert {t.device.type for t in (*network.parameters(), *network.buffers())} <= {"cpu"}


def test_a_built_network_uses_the_memory_of_the_file(tmp_path):
    save_checkpoint(tiny.codec(), tmp_path / "a")
    found = read_folder(tmp_path / "a")
    network = build(found, device=CPU)
    own = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    assert own == {name: tensor.data_ptr() for name, tensor in found.state.items()}


def test_weights_shared_by_layers_are_stored_once_and_stay_shared(tmp_path):
    save_checkpoint(tiny.checkpoint("dalle", MIXED, Dalle), tmp_path / "a")
    found = read_folder(tmp_path / "a")
    once = sum({t.data_ptr(): t.nbytes for t in found.state.values()}.values())
    assert once < sum(t.nbytes for t in found.state.values())
    assert (tmp_path / "a" / "model.safetensors").stat().st_size < once + 20_000
    layers = build(found, device=CPU).transformer.layers  # type: ignore[union-attr]
    names = dict(nn.Module.named_parameters(layers, remove_duplicate=False))
    assert names["0.1.fn.down.weight"] is names["3.1.fn.down.weight"]


def test_views_are_saved_as_the_numbers_they_show(tmp_path):
    original = tiny.codec()
    original.state = {name: torch.stack([t, t + 1])[1] for name, t in original.state.items()}
    save_checkpoint(original, tmp_path / "a")
    found = read_folder(tmp_path / "a").state
    assert all(torch.equal(found[name], tensor) for name, tensor in original.state.items())


def test_everything_said_about_a_model_comes_back(tmp_path):
    original = dataclasses.replace(
        tiny.dalle(image_codec=tiny.codec()),
        source=Source(format="dalle-pytorch", file="dalle.pt", sha256="00"),
        training={"step": 12, "epoch": 3, "optimizer": {"state": {}}},
        recommended=Recommended(cond_scale=3.0, example="a red circle", best_of=8),
    )
    save_checkpoint(original, tmp_path / "a", tokenizer=tiny.tokenizer())
    found = read_folder(tmp_path / "a")
    assert found.source == original.source
    assert found.training == {"step": 12, "epoch": 3}
    assert found.recommended == original.recommended
    assert found.tokenizer == {"kind": "huggingface", "vocab_size": len(tiny.WORDS), "file": "tokenizer.json"}
    assert found.codec is not None
    assert found.codec_info == describe_codec(found.codec, grid=tiny.GRID)
    assert found.codec_info["vocab"] == tiny.CODES


def test_the_number_format_is_that_asked_for_except_of_the_codec(tmp_path):
    save_checkpoint(tiny.dalle(image_codec=tiny.codec()), tmp_path / "a", dtype=torch.bfloat16)
    found = read_folder(tmp_path / "a")
    assert {tensor.dtype for tensor in found.state.values()} == {torch.bfloat16}
    assert found.codec is not None
    assert {tensor.dtype for tensor in found.codec.state.values()} == {torch.float32}
    network = build(found, device=CPU, dtype=torch.float32)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_the_fingerprint_is_of_the_weights_and_of_nothing_else(tmp_path):
    original = tiny.codec()
    save_checkpoint(original, tmp_path / "a")
    assert fingerprint(read_folder(tmp_path / "a").state) == fingerprint(original.state)
    assert fingerprint(tiny.codec(seed=1).state) != fingerprint(original.state)


def test_both_files_are_as_readable_as_any_other(tmp_path):
    save_checkpoint(tiny.codec(), tmp_path / "a")
    (tmp_path / "other").touch()
    assert {p.stat().st_mode for p in (tmp_path / "a").iterdir()} == {(tmp_path / "other").stat().st_mode}


def test_other_threads_build_real_modules_meanwhile():
    found = []
    with module._parameters_on_meta():
        thread = threading.Thread(target=lambda: found.append(nn.Linear(2, 2).weight.is_meta))
        thread.start()
        thread.join()
        assert nn.Linear(2, 2).weight.is_meta
    assert found == [False]
    assert not nn.Linear(2, 2).weight.is_meta


def test_weights_of_another_size_are_an_error_with_both_shapes():
    original = tiny.codec()
    original.config = dataclasses.replace(original.config, num_tokens=32)
    with pytest.raises(CheckpointError, match=r"codebook\.weight is \(16, 8\), not \(32, 8\)"):
        build(original, device=CPU)


def test_missing_and_unknown_weights_are_named():
    original = tiny.codec()
    original.state["codebook.bias"] = original.state.pop("codebook.weight")
    with pytest.raises(CheckpointError, match=r"missing: codebook\.weight; not of this model: codebook\.bias"):
        build(original, device=CPU)


def test_a_folder_that_exists_is_not_overwritten(tmp_path):
    save_checkpoint(tiny.codec(), tmp_path / "a")
    with pytest.raises(OutputError, match="exists already"):
        save_checkpoint(tiny.codec(), tmp_path / "a")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OutputError, match="was not written: No space left"):
        save_checkpoint(tiny.codec(), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def damage(folder, *, remove=(), **changes):
    path = folder / "config.json"
    data = {key: value for key, value in json.loads(path.read_text()).items() if key not in remove}
    path.write_text(json.dumps(data | changes))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "config.json").unlink(), r"config\.json: no such file; a checkpoint folder holds"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), 'has no "format"'),
        (lambda f: damage(f, format=2), "is of format 2; this version reads format 1"),
        (lambda f: damage(f, kind="bart"), "of kind 'bart' is unknown"),
        (lambda f: damage(f, remove=["kind"]), r"config\.json: 'kind'"),
        (lambda f: damage(f, config={"dim": 3}), "DiscreteVAEConfig has no field dim"),
        (lambda f: damage(f, config=[]), r"config\.json"),
        (lambda f: damage(f, source={"x": 1}), r"config\.json"),
        (lambda f: damage(f, recommended={"scale": 3}), r"config\.json: Recommended has no field scale; it has top_p"),
        (lambda f: damage(f, recommended={"top_p": 2}), r"config\.json: top_p is 2\.0; it must be above 0 and at most"),
        (lambda f: damage(f, recommended={"top_p": "0.9"}), r"Recommended\.top_p is '0\.9'; it must be float"),
        (lambda f: damage(f, recommended={"example": " "}), "example is empty; it must be a prompt"),
        (lambda f: damage(f, recommended={"best_of": 0}), "best_of is 0; it must be 1 or more"),
        (lambda f: damage(f, recommended=[3]), r"Recommended is \[3\]; it must be an object"),
        (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors: no such file"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be read as safetensors"),
        (lambda f: (f / "model.safetensors").write_text("<html>"), "cannot be read as safetensors"),
    ],
)
def test_a_broken_folder_is_one_line(tmp_path, spoil, said):
    save_checkpoint(tiny.codec(), tmp_path / "a")
    spoil(tmp_path / "a")
    with pytest.raises(CheckpointError, match=said) as caught:
        read_folder(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_weights_cut_anywhere_are_one_line(tmp_path):
    save_checkpoint(tiny.codec(), tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    data = path.read_bytes()
    for length in {*range(0, len(data), 997), len(data) - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
            read_folder(tmp_path / "a")


def test_only_our_folders_are_taken_for_ours(tmp_path):
    save_checkpoint(tiny.codec(), tmp_path / "a")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert is_checkpoint(tmp_path / "a")
    assert not is_checkpoint(tmp_path)
    assert not is_checkpoint(tmp_path / "none")


def test_building_a_network_does_not_load_the_compiler():
    code = "import sys, torch\nfrom dalle3.checkpoint import build\nfrom tests import tiny\n"
    code += "for c in (tiny.dalle(image_codec=None), tiny.codec()): build(c, device=torch.device('cpu'))\n"
    code += "print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
