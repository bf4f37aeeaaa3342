"""Our CLIP against OpenAI's (clip-anytorch), on its weights and its pictures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from dalle3.errors import CheckpointError
from dalle3.models.clip import Clip, fit, from_openai, normalise, read_picture

GOLDEN = Path(__file__).parents[1] / "golden"


def distance(ours, reference):
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@pytest.fixture(scope="module")
def golden():
    return torch.load(GOLDEN / "g_clip_vit.pt", weights_only=True)


@pytest.fixture(scope="module")
def clip(golden):
    config, weights = from_openai(golden["state_dict"])
    model = Clip(replace(config, text_heads=2))  # the fixture's heads are 32 wide, which shapes cannot tell
    model.load_state_dict(weights)
    return model.eval()


def manifest(name):
    shapes = json.loads((GOLDEN / "manifests" / f"{name}.json").read_text())
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes["state_dict"].items()}
    return weights, shapes["params"]


def test_features_of_pictures_are_openais(clip, golden):
    features = clip.project_image(golden["inputs"]["image"])
    assert distance(features, golden["outputs"]["image_features"]) < 1e-5


def test_features_of_captions_are_openais(clip, golden):
    features = clip.project_text(golden["inputs"]["text"])
    assert distance(features, golden["outputs"]["text_features"]) < 1e-5


def test_scaled_cosines_are_openais_logits(clip, golden):
    images = torch.nn.functional.normalize(clip.project_image(golden["inputs"]["image"]), dim=-1)
    logits = clip.logit_scale.exp() * clip.score(images, clip.encode_text(golden["inputs"]["text"]))
    assert distance(logits, golden["outputs"]["logits_per_image"]) < 1e-5
    assert distance(logits.T, golden["outputs"]["logits_per_text"]) < 1e-5


def test_the_gradient_at_the_picture_is_openais(clip, golden):
    pixels = golden["inputs"]["image"].clone().requires_grad_()
    clip.project_image(pixels).square().sum().backward()
    assert distance(pixels.grad, golden["outputs"]["grad_image_of_sum_sq_features"]) < 1e-5


def test_weights_in_half_precision_become_float32(golden):
    _, weights = from_openai({name: weight.half() for name, weight in golden["state_dict"].items()})
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_the_scalars_of_the_archives_are_left_out(golden):
    scalars = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    _, weights = from_openai(golden["state_dict"] | scalars)
    assert weights.keys() == from_openai(golden["state_dict"])[1].keys()


@pytest.mark.parametrize(("name", "patch"), [("clip_vit_b16", 16), ("clip_vit_b32", 32)])
def test_published_sizes_are_read_from_the_shapes_and_every_weight_is_used(name, patch):
    weights, count = manifest(name)
    config, ours = from_openai(weights)
    with torch.device("meta"):
        model = Clip(config)
    model.load_state_dict(ours, strict=True, assign=True)
    assert (config.image_size, config.patch_size, config.vision_layers, config.text_heads) == (224, patch, 12, 8)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_a_clip_with_a_resnet_is_refused_naming_those_that_work():
    with pytest.raises(CheckpointError, match=r"ResNet.*ViT-B-16"):
        from_openai(manifest("clip_rn50")[0])


def test_other_weights_are_refused_naming_what_is_missing():
    with pytest.raises(CheckpointError, match=r"visual\.conv1\.weight"):
        from_openai({"to_logits.weight": torch.zeros(2, 2)})


def test_an_unknown_weight_is_refused_by_name(golden):
    with pytest.raises(CheckpointError, match=r"visual\.extra"):
        from_openai(golden["state_dict"] | {"visual.extra": torch.zeros(1)})


@pytest.fixture(scope="module")
def picture():
    golden = torch.load(GOLDEN / "g_clip_preprocess.pt", weights_only=True)
    return golden["inputs"]["image_uint8"], golden["outputs"]["preprocessed"]


def test_pictures_from_files_are_prepared_to_the_bit(picture):
    pixels = read_picture(Image.fromarray(picture[0].numpy()), 64)
    assert torch.equal(normalise(pixels), picture[1])


def test_tensors_are_prepared_as_files_to_less_than_one_level_in_255(picture):
    pixels = picture[0].permute(2, 0, 1)[None] / 255
    from_file = read_picture(Image.fromarray(picture[0].numpy()), 64)
    assert (fit(pixels, 64)[0] - from_file).abs().max() < 1 / 255
