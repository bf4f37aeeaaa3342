"""Batches: exact to resume, independent of batch size, workers and processes; broken samples replaced."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dalle3.data.folder import CaptionedFolder
from dalle3.data.loader import Stream, batches, order
from dalle3.data.transforms import Crop, CropConfig, crop_box, to_tensor
from dalle3.errors import DataError
from dalle3.runtime import generator


def stream_of(folder, seed=0):
    return Stream(CaptionedFolder(folder), Crop(8, CropConfig()), seed=seed)


def take(number, *args, **options):
    return list(itertools.islice(batches(*args, **options), number))


def test_an_epoch_shows_every_sample_once(folder):
    captions = [stream_of(folder)[position].caption.split()[1] for position in range(10)]
    assert sorted(captions) == [str(i) for i in range(10)]


def test_every_epoch_has_an_order_of_its_own():
    assert not torch.equal(order(100, 0, 0), order(100, 0, 1))
    assert not torch.equal(order(100, 0, 0), order(100, 1, 0))


def test_every_caption_of_a_sample_comes_up(folder):
    firsts = {stream_of(folder)[position].caption.split()[0] for position in range(20)}
    assert firsts == {"picture", "number"}


@pytest.mark.parametrize("consumed", [0, 4, 12])
def test_a_resumed_stream_is_the_same_stream(folder, consumed):
    whole = take(5, stream_of(folder), 4)
    rest = take(5 - consumed // 4, stream_of(folder), 4, consumed=consumed)
    for one, other in zip(whole[consumed // 4 :], rest, strict=True):
        assert one.captions == other.captions
        assert torch.equal(one.content, other.content)


def test_workers_change_nothing(folder):
    alone, helped = take(3, stream_of(folder), 4), take(3, stream_of(folder), 4, num_workers=1)
    assert [batch.captions for batch in alone] == [batch.captions for batch in helped]


def test_a_signal_to_all_of_a_run_leaves_its_readers_alone(folder):
    ahead = batches(stream_of(folder), 4, num_workers=1)
    next(ahead)
    (reader,) = multiprocessing.active_children()
    assert reader.pid
    assert os.getpgid(reader.pid) != os.getpgrp()


def test_two_processes_read_together_what_one_reads(folder):
    one = take(2, stream_of(folder), 4)
    two = [take(2, stream_of(folder), 2, rank=rank, world=2) for rank in range(2)]
    for batch, first, second in zip(one, *two, strict=True):
        together = itertools.chain.from_iterable(zip(first.captions, second.captions, strict=True))
        assert batch.captions == tuple(together)


def test_the_place_of_a_broken_sample_is_taken_and_it_is_named(folder):
    (folder / "0.png").write_bytes(b"broken")
    stream = stream_of(folder)
    examples = [stream[position] for position in range(10)]
    skipped = take(1, stream, 10)[0].skipped
    assert tuple(line for example in examples for line in example.skipped) == skipped
    assert "0.png: not a readable picture" in skipped[0]
    assert "0" not in {example.caption.split()[1] for example in examples}


def test_nothing_but_broken_samples_is_an_error(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="100 samples in a row cannot be used"):
        stream_of(folder)[0]


@given(width=st.integers(1, 500), height=st.integers(1, 500), ratio=st.floats(0.05, 1.0), seed=st.integers(0, 2**31))
def test_a_crop_is_a_square_within_the_picture(width, height, ratio, seed):
    rng = torch.Generator().manual_seed(seed)
    left, top, right, bottom = crop_box((width, height), lower_ratio=ratio, rng=rng)
    assert right - left == bottom - top >= 1
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_a_large_jpeg_is_decoded_smaller_but_not_below_twice_what_it_becomes(tmp_path):
    ramp = Image.linear_gradient("L").resize((900, 600)).convert("RGB")
    ramp.save(tmp_path / "a.jpg", quality=95)
    crop = Crop(64, CropConfig(random_resize_crop_lower_ratio=0.8))
    source = CaptionedFolder(tmp_path, needs_captions=False)
    whole, less = source.load(0).content, Stream(source, crop, seed=0).source.load(0).content
    assert (whole.size, less.size, crop.at_least) == ((900, 600), (225, 150), 144)
    expected, found = (crop(picture, generator(1)).float() for picture in (whole, less))
    assert (expected - found).abs().max() <= 3  # of 255


def test_a_crop_is_resized_as_pillow_does():
    noise = torch.randint(256, (80, 96, 3), dtype=torch.uint8, generator=generator(0)).numpy()
    picture = Image.fromarray(noise).resize((192, 160), Image.Resampling.BICUBIC)
    for seed in range(4):
        box = crop_box(picture.size, lower_ratio=0.75, rng=generator(seed))
        expected = to_tensor(picture.resize((64, 64), Image.Resampling.BICUBIC, box=box)).float()
        found = Crop(64, CropConfig())(picture, generator(seed)).float()
        assert (found - expected)[:, 2:-2, 2:-2].abs().max() <= 1
        assert (found - expected).abs().mean() < 0.5


def test_pictures_are_mirrored_only_when_asked():
    picture = Image.new("RGB", (8, 8))
    picture.putpixel((0, 0), (255, 255, 255))
    for flip in (False, True):
        crop = Crop(8, CropConfig(random_resize_crop_lower_ratio=1.0, flip=flip))
        lefts = {int(crop(picture, generator(seed))[0, 0, 0]) for seed in range(16)}
        assert lefts == ({0, 255} if flip else {255})


def test_a_shift_moves_whole_pixels_and_repeats_the_edge():
    noise = torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=generator(0)).numpy()
    still = CropConfig(random_resize_crop_lower_ratio=1.0)
    picture = Image.fromarray(noise)
    padded = np.pad(Crop(16, still)(picture, generator(0)).numpy(), ((0, 0), (2, 2), (2, 2)), mode="edge")
    windows = {padded[:, y : y + 16, x : x + 16].tobytes() for y in range(5) for x in range(5)}
    moving = Crop(16, dataclasses.replace(still, shift=2))
    found = {moving(picture, generator(seed)).numpy().tobytes() for seed in range(200)}
    assert found == windows
