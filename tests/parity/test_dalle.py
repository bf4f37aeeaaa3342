"""The transformer against dalle-pytorch 1.1.4, 1.6.6 and the DALL-3 fork: logits, loss and gradients."""

from __future__ import annotations

import pytest
import torch

from dalle3.convert import dalle_pytorch
from dalle3.models.dalle import Dalle
from tests.golden import FOLDER, golden, relative_error

FILES = sorted(path.stem for path in FOLDER.glob("[ab]*_*.pt") if path.stem.startswith(("a_", "a114_", "b_")))


def load(reference: dict) -> Dalle:
    config, state, _ = dalle_pytorch.dalle_from_dalle_pytorch(
        reference["state_dict"], reference["hparams"], version=reference.get("version")
    )
    model = Dalle(config)
    model.load_state_dict(state, strict=True)
    return model.eval()


@pytest.fixture(params=FILES)
def reference(request) -> dict:
    return golden(request.param)


def test_every_reference_is_here():
    assert len(FILES) == 22


def test_logits_of_a_whole_picture_are_the_originals(reference):
    logits = load(reference)(reference["inputs"]["text"], reference["inputs"]["image"])
    assert relative_error(logits[:, 3::7], reference["outputs"]["logits"]) < 1e-5


def test_logits_after_a_caption_are_the_originals(reference):
    logits = load(reference)(reference["inputs"]["text"])
    assert relative_error(logits[:, -1:], reference["outputs"]["logits_text_only"]) < 1e-5


def test_logits_of_the_null_caption_are_the_originals(reference):
    if "logits_null" not in reference["outputs"]:
        pytest.skip("only 1.6.6 has a null caption")
    logits = load(reference)(torch.zeros_like(reference["inputs"]["text"]), reference["inputs"]["image"])
    assert relative_error(logits[:, 3::7], reference["outputs"]["logits_null"]) < 1e-5


def test_loss_and_gradients_are_the_originals(reference):
    model, outputs = load(reference), reference["outputs"]
    loss, _ = model.loss(reference["inputs"]["text"], reference["inputs"]["image"])
    loss.backward()
    assert loss.item() == pytest.approx(outputs["loss"], rel=1e-5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    compared = 0
    for key, expected in outputs["grads"].items():
        if dalle_pytorch._why_dropped(key):
            continue
        name = dalle_pytorch._our_name(key)
        assert relative_error(gradients[name], dalle_pytorch._our_shape(name, expected)) < 1e-5, name
        compared += 1
    assert compared >= 5


def test_gradient_norms_are_the_originals(reference):
    model, norms = load(reference), reference["outputs"]["grad_norms"]
    model.loss(reference["inputs"]["text"], reference["inputs"]["image"])[0].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for key, expected in norms.items():
        if not dalle_pytorch._why_dropped(key):
            assert gradients[dalle_pytorch._our_name(key)].norm().item() == pytest.approx(expected, rel=1e-4), key


def test_checkpointing_changes_no_gradient():
    reference = golden("b_reversible_mix")
    plain, saving = load(reference), load(reference)
    saving.transformer.checkpointing = True
    for model in (plain, saving):
        model.loss(reference["inputs"]["text"], reference["inputs"]["image"])[0].backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
