"""Maps that captions lay under the picture: by each word, and by CLIP's reading of all of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from dalle3.errors import ConfigError
from dalle3.models.clip import Clip
from dalle3.models.clip_text import ClipText, text_half
from dalle3.models.dalle import Dalle, DalleConfig, with_maps
from dalle3.models.maps import CaptionMaps
from tests import tiny

CONFIG = DalleConfig(
    num_text_tokens=20,
    text_seq_len=6,
    num_image_tokens=16,
    image_grid=4,
    dim=32,
    depth=2,
    heads=2,
    dim_head=16,
    caption_maps=3,
)
CLIP = dataclasses.replace(tiny.CLIP, text_end="last_id", text_layers=2, context_length=7)
TEXT = torch.tensor([[7, 3, 7, 0, 0, 0], [5, 0, 0, 0, 0, 0]])


def model(config: DalleConfig = CONFIG) -> Dalle:
    torch.manual_seed(0)
    return Dalle(config).eval()


def codes() -> Tensor:
    return torch.randint(0, 16, (2, 16), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_fresh_maps_change_nothing():
    plain = model(dataclasses.replace(CONFIG, caption_maps=0))
    grown = Dalle(CONFIG).eval()
    grown.load_state_dict(with_maps(CONFIG, plain.state_dict()))
    assert torch.equal(grown(TEXT, codes()), plain(TEXT, codes()))


@pytest.mark.parametrize("place", [0, 1, 9, 15])
@torch.no_grad()
def test_a_words_number_at_a_place_counts_from_the_logits_of_that_code_on(place):
    dalle, before = model(), model()(TEXT, codes())
    assert dalle.caption_maps is not None
    dalle.caption_maps.words[3].view(16, 3)[place] = 1.0  # only the first caption has the word
    after = dalle(TEXT, codes())
    changed = (after != before).any(-1)
    assert changed[0].nonzero()[0] == CONFIG.text_seq_len + place
    assert not changed[1].any()


@torch.no_grad()
def test_the_maps_of_words_add_up_as_often_as_they_are_there_and_blanks_have_none():
    maps = model().caption_maps
    assert maps is not None
    torch.nn.init.normal_(maps.words)
    single = {word: maps(torch.tensor([[word, 0, 0, 0, 0, 0]]))[0] for word in (7, 3)}
    torch.testing.assert_close(maps(TEXT)[0], 2 * single[7] + single[3])
    assert not maps(torch.zeros_like(TEXT)).any()


def test_words_that_are_not_in_a_caption_get_no_gradient():
    dalle = model()
    loss, _ = dalle.loss(TEXT, codes())
    loss.backward()
    assert dalle.caption_maps is not None
    assert dalle.caption_maps.words.grad is not None
    moved = dalle.caption_maps.words.grad.view(20, 16, 3).any(-1)
    assert moved[[3, 5, 7]].all()
    assert not moved[[0, 1, 2, 4, 6, *range(8, 20)]].any()


def test_maps_that_are_there_are_kept():
    state = model().state_dict()
    assert with_maps(CONFIG, state) is state


def test_a_negative_number_of_channels_is_refused():
    with pytest.raises(ConfigError, match="caption_maps is -1; it must be at least 0"):
        dataclasses.replace(CONFIG, caption_maps=-1)


def test_maps_have_a_number_for_each_word_place_and_channel():
    assert CaptionMaps(CONFIG).words.shape == (20, 16 * 3)


def clip(**changes) -> Clip:
    torch.manual_seed(3)
    made = Clip(dataclasses.replace(CLIP, **changes)).eval()
    for tensor in made.state_dict().values():  # none of them where a fresh CLIP has nothing
        tensor += 0.3 * torch.randn_like(tensor)
    return made


def reading(**changes) -> Dalle:
    """A DALLE with maps of CLIP's reading that count."""
    half, weights = text_half(CLIP, clip().state_dict())
    found = model(dataclasses.replace(CONFIG, clip_maps=4, clip_text=half, **changes))
    assert found.clip_maps is not None
    found.clip_maps.reader.load_state_dict(weights)
    torch.nn.init.normal_(found.clip_maps.to_dim.weight)
    return found


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_the_text_half_reads_as_the_whole_clip_does(activation):
    whole = clip(activation=activation)
    half, weights = text_half(whole.config, whole.state_dict())
    reader = ClipText(half)
    reader.load_state_dict(weights)
    torch.testing.assert_close(reader(TEXT), whole.encode_text(TEXT), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(reader(TEXT)[0], reader(TEXT)[1], atol=0.01)


def test_a_clip_that_ends_captions_its_own_way_is_refused():
    with pytest.raises(ConfigError, match="end-of-text token of its own"):
        text_half(tiny.CLIP, {})


@torch.no_grad()
def test_fresh_maps_of_a_reading_change_nothing():
    plain = model()
    half, weights = text_half(CLIP, clip().state_dict())
    config = dataclasses.replace(CONFIG, clip_maps=4, clip_text=half)
    grown = Dalle(config).eval()
    named = {f"clip_maps.reader.{name}": tensor for name, tensor in weights.items()}
    grown.load_state_dict(with_maps(config, plain.state_dict()) | named)
    assert torch.equal(grown(TEXT, codes()), plain(TEXT, codes()))


@torch.no_grad()
def test_another_reading_changes_the_codes_and_the_null_caption_has_none():
    dalle = reading()
    assert dalle.clip_maps is not None
    found = dalle.clip_maps(TEXT)
    assert found.shape == (2, 16, 32)
    assert not torch.allclose(found[0], found[1], atol=0.01)
    assert not dalle.clip_maps(torch.zeros_like(TEXT)).any()


@torch.no_grad()
def test_words_may_be_left_out_and_the_reading_kept():
    dalle, blank = reading(), torch.zeros_like(TEXT)
    both, meant = dalle.loss(TEXT, codes())[1]["image"], dalle.loss(blank, codes(), meant=TEXT)[1]["image"]
    nothing = dalle.loss(blank, codes())[1]["image"]
    assert len({round(float(loss), 5) for loss in (both, meant, nothing)}) == 3
    assert torch.equal(dalle.loss(TEXT, codes(), meant=TEXT)[1]["image"], both)


def test_a_reading_is_blurred_in_training_alone_and_never_learns():
    dalle = reading()
    assert dalle.clip_maps is not None
    assert torch.equal(dalle.clip_maps(TEXT), dalle.clip_maps(TEXT))
    dalle.train()
    assert not torch.equal(dalle.clip_maps(TEXT), dalle.clip_maps(TEXT))
    dalle.loss(TEXT, codes())[0].backward()
    assert not any("reader" in name for name, _ in dalle.named_parameters())
    assert all(p.grad is not None and p.grad.any() for p in dalle.clip_maps.parameters())


def test_maps_of_a_reading_without_a_clip_are_refused():
    with pytest.raises(ConfigError, match="clip_maps is 4, and there is no clip_text"):
        model(dataclasses.replace(CONFIG, clip_maps=4))
