"""Maps that the words of a caption lay under the picture."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from dalle3.errors import ConfigError
from dalle3.models.dalle import CaptionMaps, Dalle, DalleConfig, with_caption_maps

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
    grown.load_state_dict(with_caption_maps(CONFIG, plain.state_dict()))
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
    assert with_caption_maps(CONFIG, state) is state


def test_a_negative_number_of_channels_is_refused():
    with pytest.raises(ConfigError, match="caption_maps is -1; it must be at least 0"):
        dataclasses.replace(CONFIG, caption_maps=-1)


def test_maps_have_a_number_for_each_word_place_and_channel():
    assert CaptionMaps(CONFIG).words.shape == (20, 16 * 3)
