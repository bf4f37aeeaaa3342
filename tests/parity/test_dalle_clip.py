"""The ranker of dalle-pytorch 1.6.6 on its weights."""

from pathlib import Path

import pytest
import torch

from dalle3.convert.dalle_pytorch_clip import from_dalle_pytorch_clip, is_dalle_pytorch_clip
from dalle3.errors import CheckpointError
from dalle3.models.clip import contrastive_loss
from dalle3.models.dalle_clip import DalleClip

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    return torch.load(GOLDEN / "c_dalle_clip.pt", weights_only=True)


@pytest.fixture(scope="module")
def clip(golden):
    config, weights = from_dalle_pytorch_clip(golden["state_dict"])
    model = DalleClip(config)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def distance(ours, reference):
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def similarity(clip, golden, keep):
    text = clip.encode_text(golden["inputs"]["text"], keep)
    return clip.logit_scale.exp() * clip.score(clip.encode_image(golden["inputs"]["img"]), text).diagonal()


def test_similarities_are_the_references(clip, golden):
    assert distance(similarity(clip, golden, None), golden["outputs"]["sim_nomask"]) < 1e-5


def test_similarities_of_masked_captions_are_the_references(clip, golden):
    assert distance(similarity(clip, golden, golden["inputs"]["mask"]), golden["outputs"]["sim"]) < 1e-5


def test_the_loss_is_the_references(clip, golden):
    images = clip.encode_image(golden["inputs"]["img"])
    loss = contrastive_loss(
        images, clip.encode_text(golden["inputs"]["text"], golden["inputs"]["mask"]), clip.logit_scale
    )
    assert loss.item() == pytest.approx(golden["outputs"]["loss"], rel=1e-5)


def test_every_size_is_read_from_the_shapes(clip, golden):
    told = golden["hparams"]
    assert clip.config.text_heads == told["text_heads"]
    assert clip.config.image_size == told["visual_image_size"]
    assert clip.config.patch_size == told["visual_patch_size"]
    assert clip.config.vision_layers == told["visual_enc_depth"]


def test_wrappers_of_other_versions_change_nothing(clip, golden):
    older = {name.replace(".fn.fn.fn.", ".fn.fn."): weight for name, weight in golden["state_dict"].items()}
    assert from_dalle_pytorch_clip(older)[1].keys() == clip.state_dict().keys()


def test_branches_of_files_older_than_layer_scale_are_not_scaled(clip, golden):
    older = {name: weight for name, weight in golden["state_dict"].items() if not name.endswith(".scale")}
    weights = from_dalle_pytorch_clip(older)[1]
    assert weights.keys() == clip.state_dict().keys()
    assert torch.equal(weights["text_transformer.layers.0.0.scale"], torch.ones(64))


def test_other_weights_are_told_apart_and_refused(golden):
    assert is_dalle_pytorch_clip(golden["state_dict"])
    assert not is_dalle_pytorch_clip({"text_emb.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"temperature.*not among them"):
        from_dalle_pytorch_clip({"text_emb.weight": torch.zeros(1)})


def test_an_unknown_weight_is_refused_by_name(golden):
    with pytest.raises(CheckpointError, match="text_transformer_extra"):
        from_dalle_pytorch_clip(golden["state_dict"] | {"text_transformer_extra": torch.zeros(1)})


def test_pictures_of_another_size_are_fitted(clip):
    assert clip.encode_image(torch.rand(2, 3, 100, 80)).shape == (2, 32)
