"""Whole foreign files, from the bytes on disk to what their originals answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dalle3.checkpoint import build
from dalle3.convert import read

GOLDEN = Path(__file__).parent.parent / "golden"
CPU = torch.device("cpu")


def network(path: Path, **given) -> Any:
    return build(read(path, **given), device=CPU, dtype=torch.float32)


def error(ours: Tensor, reference: Tensor) -> float:
    """Relative to the largest magnitude of the reference; masked logits, equal in both, count for nothing."""
    seen = reference > -1e30 if reference.is_floating_point() else torch.ones_like(reference, dtype=torch.bool)
    assert torch.equal(ours[~seen], reference[~seen])
    return ((ours[seen] - reference[seen]).abs().max() / reference[seen].abs().max()).item()


def load(name: str) -> dict[str, Any]:
    return torch.load(GOLDEN / name, weights_only=True)


@torch.no_grad()
def test_the_forks_dalle_answers_as_it_did_when_it_was_saved():
    expected = load("ckpt_fork_dalle.pt")["_expect"]
    logits = network(GOLDEN / "ckpt_fork_dalle.pt")(expected["inputs"]["text"], expected["inputs"]["image"])
    assert error(logits, expected["logits"]) < 1e-5


def test_the_forks_dalle_brings_its_image_tokenizer():
    found = read(GOLDEN / "ckpt_fork_dalle.pt")
    alone = read(GOLDEN / "ckpt_dvae.pt")
    assert found.codec is not None
    assert found.codec.config == alone.config
    assert found.codec_info == {"kind": "discrete_vae", "vocab": 64, "grid": 16}
    weights = load("ckpt_fork_dalle.pt")["weights"]
    assert all(torch.equal(tensor, weights[f"vae.{name}"]) for name, tensor in found.codec.state.items())


def test_train_vaes_file_holds_a_discrete_vae():
    found, original = read(GOLDEN / "ckpt_dvae.pt"), load("ckpt_dvae.pt")
    assert found.kind == "discrete_vae"
    assert (found.config.image_size, found.config.num_tokens, found.config.hidden_dim) == (128, 64, 8)
    assert found.state.keys() == original["weights"].keys()
    assert build(found, device=CPU)


@pytest.mark.parametrize("with_yaml", [True, False])
@torch.no_grad()
def test_a_lightning_checkpoint_of_taming_decodes_as_taming(tmp_path, with_yaml):
    path = tmp_path / "last.ckpt"
    path.symlink_to(GOLDEN / "d_gumbelvq_f8_lightning.ckpt")
    expected = load("d_gumbelvq_f8.pt")
    yaml = {"config_path": GOLDEN / "d_gumbelvq_f8_lightning.yaml"} if with_yaml else {}
    model = network(path, **yaml)
    images = (expected["inputs"]["x"].float() + 1) / 2
    assert error(model.quantize(model.latents(images)), expected["outputs"]["logits"].float()) < 1e-5
    codes = expected["outputs"]["indices_argmax"].view(len(images), 16, 16)
    assert torch.equal(model.encode(images), codes)


@torch.no_grad()
def test_openais_dvae_encodes_and_decodes_as_openais():
    expected = load("openai_dvae/expected.pt")
    model = network(GOLDEN / "openai_dvae")
    assert error(model.enc(0.8 * expected["images"] + 0.1), expected["logits"]) < 1e-5
    assert torch.equal(model.encode(expected["images"]), expected["codes"])
    assert error(model.decode(expected["codes"]), expected["decoded"]) < 1e-5
