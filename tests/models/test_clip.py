import sys

import pytest
import torch

from dalle3.checkpoint import Checkpoint, build
from dalle3.errors import ConfigError, DependencyError, ImageError
from dalle3.models.clip import Clip, ClipConfig, contrastive_loss, fit
from tests.tiny import CLIP as TINY


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return Clip(TINY).eval()


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (9, 31)])
def test_features_have_unit_length_whatever_the_size_of_the_picture(clip, size):
    features = clip.encode_image(torch.rand(2, 3, *size))
    assert features.shape == (2, 8)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))


def test_a_caption_does_not_depend_on_what_follows_its_end(clip):
    ids = torch.tensor([[18, 3, 4, 19, 0, 0], [18, 3, 4, 19, 19, 19], [18, 3, 4, 19, 7, 5]])
    features = clip.encode_text(ids)
    torch.testing.assert_close(features, features[:1].expand(3, -1))


def test_without_an_end_token_a_caption_is_read_at_its_last_word():
    torch.manual_seed(0)
    clip = Clip(ClipConfig(**{**vars(TINY), "text_end": "last_id"})).eval()
    padded, bare = clip.encode_text(torch.tensor([[9, 3, 4, 0, 0, 0]])), clip.encode_text(torch.tensor([[9, 3, 4]]))
    torch.testing.assert_close(padded, bare)


def test_gradients_reach_a_picture_of_another_size(clip):
    pixels = torch.rand(1, 3, 40, 40).requires_grad_()
    clip.encode_image(pixels)[0, 0].backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().min() > 0


def test_a_picture_of_the_right_size_is_not_touched():
    pixels = torch.randn(1, 3, 16, 16)
    assert torch.equal(fit(pixels, 16), pixels)


def test_a_picture_without_three_channels_is_refused(clip):
    with pytest.raises(ImageError, match=r"\(1, 1, 16, 16\)"):
        clip.encode_image(torch.rand(1, 1, 16, 16))


def test_a_model_built_from_a_checkpoint_gives_the_same_features(clip):
    checkpoint = Checkpoint(kind="clip", config=TINY, state=clip.state_dict())
    other = build(checkpoint, device=torch.device("cpu"))
    ids, pixels = torch.tensor([[18, 3, 19]]), torch.rand(1, 3, 20, 20)
    assert torch.equal(other.encode_text(ids), clip.encode_text(ids))
    assert torch.equal(other.encode_image(pixels), clip.encode_image(pixels))


def test_bfloat16_weights_give_float32_features(clip):
    half = Clip(TINY).to(torch.bfloat16).eval()
    assert half.encode_image(torch.rand(1, 3, 20, 20)).dtype == torch.float32
    assert half.encode_text(torch.tensor([[18, 3, 19]])).dtype == torch.float32


def test_building_a_small_clip_says_nothing(capfd):
    Clip(TINY)
    assert capfd.readouterr().err == ""


def test_the_loss_is_the_entropy_of_naming_pairs():
    same = torch.ones(4, 2) / 2**0.5
    assert contrastive_loss(same, same, torch.tensor(0.0)).item() == pytest.approx(torch.tensor(4.0).log().item())


def test_the_loss_falls_as_pairs_agree_and_the_scale_grows():
    pairs = torch.eye(4)
    warm, cold = (contrastive_loss(pairs, pairs, torch.tensor(scale)).item() for scale in (1.0, 4.0))
    assert cold < warm < contrastive_loss(pairs, pairs.roll(1, 0), torch.tensor(1.0)).item()


@pytest.mark.parametrize("wrong", [{"patch_size": 7}, {"text_heads": 3}, {"vision_heads": 0}])
def test_sizes_that_do_not_go_together_are_refused(wrong):
    with pytest.raises(ConfigError, match="multiple"):
        ClipConfig(**{**vars(TINY), **wrong})


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.models.clip", None)
    with pytest.raises(DependencyError, match=r'pip install "dalle3\[clip\]"'):
        Clip(TINY)
