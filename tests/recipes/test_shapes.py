"""Coloured shapes: the scenes of the published benchmark, and a checker that can be trusted."""

from __future__ import annotations

import hashlib
import json
import tarfile

import numpy as np
import pytest
from PIL import ImageFilter

from recipes.shapes import evaluate, selftest, shards
from recipes.shapes.__main__ import write_prompts
from recipes.shapes.check import check, components, detect
from recipes.shapes.evaluate import summary
from recipes.shapes.scenes import WITHHELD, captions, distinct_captions, render, scene

# made by the original program (picto/shapes.py), Pillow 13
ORIGINAL = [
    (0, None, False, "fc513f3af86f5e35", "a large green star to the right of a brown heart"),
    (1, None, False, "26fcbde52bea8d97", "four brown crosses"),
    ("train7", None, False, "cbe07bff48242107", "a black triangle"),
    (3, "one", False, "0494af5cba3026bf", "a small red square on a light gray background"),
    (
        4,
        "two",
        True,
        "9145b2ba3b85c4d7",
        "a small orange cross to the left of a large blue square on a light blue background",
    ),
    (5, "count", True, "bbf07d73a59893c1", "four orange crosses"),
    (11, "count", False, "54cce80ba2a83be9", "three green squares on a light green background"),
]


@pytest.mark.parametrize(("seed", "kind", "withheld", "digest", "caption"), ORIGINAL)
def test_a_seed_gives_the_picture_and_caption_of_the_original(seed, kind, withheld, digest, caption):
    what = scene(seed, kind=kind, withheld=withheld)
    assert hashlib.sha256(render(what, 128).tobytes()).hexdigest()[:16] == digest
    assert captions(what)[0] == caption


def test_training_scenes_hold_no_withheld_couple():
    couples = {(thing.shape, thing.color) for i in range(300) for thing in scene(i).objects}
    assert not couples & set(WITHHELD)


def test_withheld_scenes_begin_with_a_withheld_couple():
    firsts = [scene(i, withheld=True).objects[0] for i in range(100)]
    assert {(thing.shape, thing.color) for thing in firsts} <= set(WITHHELD)


def test_there_are_over_a_million_captions():
    assert sum(distinct_captions().values()) == 1_368_480


@pytest.mark.parametrize("seed", range(8))
def test_the_checker_agrees_with_a_clean_picture(seed):
    what = scene(seed, withheld=seed % 2 == 0)
    assert set(check(render(what, 128), what).values()) == {1.0}


@pytest.mark.parametrize("seed", range(4))
def test_the_checker_sees_through_a_blur(seed):
    what = scene(seed)
    assert check(render(what, 128).filter(ImageFilter.GaussianBlur(1.28)), what)["all"] == 1


def test_the_checker_rejects_another_picture():
    assert check(render(scene(8, kind="two"), 128), scene(1, kind="two"))["all"] == 0


def test_an_inverted_relation_costs_the_relation_and_nothing_else():
    scores = check(render(what := scene(2, kind="two"), 128), selftest.inverted(what))
    assert scores["relation"] == 0
    assert scores["binding"] == 1


def test_swapped_colours_leave_shapes_and_colours_right_and_bind_nothing():
    what = scene(0, kind="two")
    scores = check(render(what, 128), selftest.swapped(what))
    assert (scores["shape"], scores["color"], scores["binding"]) == (1, 1, 0)


def test_an_empty_picture_holds_no_object():
    assert detect(render(scene(1), 128).resize((1, 1)).resize((64, 64)))[1] == []


def test_regions_that_meet_only_lower_down_are_one():
    inside = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, 1]], bool)
    labels, number = components(inside)
    assert number == 3
    assert labels[0, 0] == labels[0, 2] == 1


def test_the_tars_hold_picture_caption_and_scene(tmp_path):
    training, withheld = shards.write(tmp_path, 2, size=32)
    with tarfile.open(training) as tar:
        assert tar.getnames()[:3] == [f"shapes-train-000000.{suffix}" for suffix in ("png", "txt", "json")]
    with tarfile.open(withheld) as tar:
        assert len(tar.getnames()) == 3 * 200


def test_tars_of_one_sort_hold_nothing_else(tmp_path):
    training, _ = shards.write(tmp_path, 4, size=32, kinds=("two",), sizes=("medium", "large"), background="white")
    with tarfile.open(training) as tar:
        files = [tar.extractfile(name) for name in tar.getnames() if name.endswith("json")]
        scenes = [json.load(file)["scene"] for file in files if file is not None]
    assert {(what["kind"], what["background"]) for what in scenes} == {("two", "white")}
    assert {thing["size"] for what in scenes for thing in what["objects"]} <= {"medium", "large"}


def test_test_scenes_of_withheld_couples_begin_with_one():
    firsts = [what.objects[0] for what in evaluate.held_out(20, kind="two", withheld=True)]
    assert {(thing.shape, thing.color) for thing in firsts} <= set(WITHHELD)


def test_a_picture_counts_only_where_every_object_is_right():
    both, one, none = ({"binding": part} for part in (1.0, 0.5, 0.0))
    assert summary([both, one, none, both]) == {"objects": 0.5, "binding": 0.625}


def test_prompts_are_those_of_the_scenes_judged(tmp_path):
    paths = write_prompts(tmp_path, 3)
    assert [path.name for path in paths] == ["one.txt", "one_withheld.txt", "two.txt", "two_withheld.txt"]
    assert paths[2].read_text().splitlines() == [captions(what)[0] for what in evaluate.held_out(3, kind="two")]
