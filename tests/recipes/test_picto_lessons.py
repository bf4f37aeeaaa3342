"""Lessons: the codes that a DALLE learns from, and how often."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import torch

from dalle3.data.codes import Codec, CodeShards, write_shard
from dalle3.errors import DataError
from recipes.picto.lessons import LESSONS, Lesson, write_lesson
from recipes.picto.samples import add_file
from recipes.picto.train import Plan, prepare_lessons, read_size, tars

CODEC = Codec(kind="vae", vocab=100, grid=2, sha256="0")
SCENES = (
    ("single", "a red fox"),
    ("pair", "a fox and a cat"),
    ("char", "a face"),
    ("hue", "a blue fox"),
    ("count", "two cats"),
)


def single(**changes: str) -> dict[str, str]:
    """What is said about a thing of everyday in a common style, with changes."""
    return {"kind": "single", "style": "noto", "group": "food & drink", "tone": "", "concept": "banana", **changes}


def write_data(folder: Path, scenes=SCENES) -> Path:
    """Tars of two scenes each, of which only what is said about them is there."""
    folder.mkdir()
    for number, (kind, text) in enumerate(scenes):
        with tarfile.open(folder / f"train-{number // 2:05d}.tar", "a") as tar:
            about = json.dumps({**single(), "kind": kind, "captions": [text, "a thing"], "key": f"{kind}-{number}"})
            add_file(tar, f"{number}.txt", text.encode())
            add_file(tar, f"{number}.json", about.encode())
    return folder


def write_codes(folder: Path, texts: list[str]) -> Path:
    """The codes of pictures with these captions; those of picture n are n."""
    codes = torch.arange(len(texts)).view(-1, 1, 1).expand(-1, 2, 2)
    for place in range(0, len(texts), 3):
        part = slice(place, place + 3)
        lines = [(text, "a thing") for text in texts[part]]
        write_shard(folder / f"codes-{place // 3:05d}.safetensors", codes[part], captions=lines, codec=CODEC)
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def codes(tmp_path) -> Path:
    return write_codes(tmp_path / "runs" / "codes", [text for _, text in SCENES])


def test_things_alone_are_there_twice_and_pairs_and_counts_not_at_all(data, codes, tmp_path):
    assert write_lesson(LESSONS["codes-first"], tars(data, "train-*.tar"), codes, tmp_path / "first") == 5
    (shard,) = (tmp_path / "first").iterdir()
    lesson = CodeShards([shard])
    assert lesson.codec == CODEC
    assert lesson.codes[:, 0, 0].tolist() == [0, 0, 2, 3, 3]
    assert lesson.captions[2:4] == [("a face", "a thing"), ("a blue fox", "a thing")]


@pytest.mark.parametrize("order", [(0, 1, 2, 4, 3), (0, 1, 2, 3)])
def test_codes_of_other_pictures_or_in_another_order_are_refused(data, tmp_path, order):
    other = write_codes(tmp_path / "codes", [SCENES[place][1] for place in order])
    with pytest.raises(DataError, match="does not hold the codes of the pictures in"):
        write_lesson(LESSONS["codes-first"], tars(data, "train-*.tar"), other, tmp_path / "first")
    assert not (tmp_path / "first").exists()


def test_a_lesson_of_nothing_is_refused(data, codes, tmp_path):
    with pytest.raises(DataError, match="has no scene of this lesson"):
        write_lesson(Lesson(times=lambda about: 0), tars(data, "train-*.tar"), codes, tmp_path / "first")


def test_a_lesson_may_repeat_the_caption_that_names_everything(data, codes, tmp_path):
    lesson = Lesson(times=lambda about: about["kind"] == "hue", first_caption=3)
    assert write_lesson(lesson, tars(data, "train-*.tar"), codes, tmp_path / "hues") == 1
    found = CodeShards(list((tmp_path / "hues").iterdir()))
    assert found.captions == [("a blue fox", "a blue fox", "a blue fox", "a thing")]


def test_of_a_picture_that_is_there_half_of_the_times_chance_decides_by_its_name(tmp_path):
    data = write_data(tmp_path / "data", [("single", f"fox {number}") for number in range(200)])
    codes = write_codes(tmp_path / "codes", [f"fox {number}" for number in range(200)])
    numbers = [
        write_lesson(Lesson(times=lambda about: 1.5), tars(data, "train-*.tar"), codes, tmp_path / name)
        for name in ("one", "two")
    ]
    assert numbers[0] == numbers[1] == pytest.approx(300, abs=25)


@pytest.mark.parametrize(
    ("about", "times"),
    [
        (single(), 24),
        (single(concept="palm tree", style="fluent-color"), 24 * 0.5 * 0.6),
        (single(tone="dark"), 0.3),
        (single(style="outline"), 2),
        (single(style="fluent-hc"), 0.8),
        (single(group="symbols"), 1),
        (single(concept="banana with a face"), 1),
        ({**single(), "kind": "hue"}, 7),
        ({**single(group="smileys"), "kind": "hue"}, 2.8),
        ({"kind": "clip"}, 0),
        ({"kind": "char"}, 0.7),
    ],
)
def test_things_of_everyday_in_common_styles_are_there_most_often(about, times):
    assert LESSONS["codes-things"].times(about) == pytest.approx(times)


def test_the_even_lesson_has_things_less_often_and_the_kinds_beside_them_more():
    things, evenly = LESSONS["codes-things"].times, LESSONS["codes-evenly"].times
    assert evenly(single()) == 7
    assert evenly({**single(), "kind": "hue"}) == 3
    assert evenly(single(group="symbols")) == 1.5
    beside = {"bg": 1.2, "badge": 1.2, "glyph": 0.25, "char": 0.8, "pair": 0.7, "cpair": 0.7, "count": 1.2}
    for kind, times in beside.items():
        assert things({"kind": kind}) < evenly({"kind": kind}) == times


def test_the_codes_of_a_lesson_are_made_once_and_only_for_a_size_that_has_it(data, codes):
    full, small = (
        Plan(data=data, out=codes.parent, size=read_size(size), minutes=1, shared=()) for size in ("full", "small")
    )
    prepare_lessons(full)
    assert not (codes.parent / "codes-first").exists()
    prepare_lessons(small)
    (shard,) = (codes.parent / "codes-first").iterdir()
    written = shard.stat().st_mtime_ns
    prepare_lessons(small)
    assert shard.stat().st_mtime_ns == written
