"""What training never sees, over every scene planned from a small material."""

from __future__ import annotations

import hashlib
from dataclasses import astuple

import pytest

from recipes.picto import splits
from recipes.picto.characters import DESCRIBERS
from recipes.picto.plan import (
    KINDS,
    Amounts,
    Count,
    Glyph,
    Pair,
    Recolored,
    RecoloredPair,
    Single,
    plan,
)
from recipes.picto.scenes import draw
from tests.recipes import picto_material as small


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return small.assets(tmp_path_factory.mktemp("drawings"))


@pytest.fixture(scope="module")
def planned(assets):
    return plan(assets, [], amounts=small.SMALL)


def scenes_of(planned, split, kind):
    return [sample.scene for sample in planned if sample.split == split and isinstance(sample.scene, kind)]


def drawings_in(scene):
    if isinstance(scene, Pair):
        return [scene.first, scene.second]
    return list(scene.candidates) if isinstance(scene, RecoloredPair) else [scene.asset]


def test_the_plan_is_that_of_the_original_program(planned):
    plain = [(sample.split, sample.scene.kind, astuple(sample.scene), sample.number) for sample in planned]
    # made by the original program (picto/build.py, `specs`) from the same material
    assert hashlib.sha256(repr(plain).encode()).hexdigest()[:16] == "c07637e96ee5a0ee"


def test_the_plan_does_not_change_from_run_to_run(assets, planned):
    assert plan(assets, [], amounts=small.SMALL) == planned


def test_no_training_scene_shows_a_drawing_in_a_withheld_style(assets, planned):
    withheld = splits.withheld_styles(assets)
    assert any(withheld.values())
    for sample in planned:
        if sample.split == "train":
            for index in drawings_in(sample.scene):
                assert assets[index].style not in withheld[assets[index].held_by]


def test_withheld_drawings_appear_once_and_plain(assets, planned):
    withheld = splits.withheld_styles(assets)
    expected = [index for index, asset in enumerate(assets) if asset.style in withheld[asset.held_by]]
    shown = [index for sample in planned for index in drawings_in(sample.scene) if index in set(expected)]
    assert sorted(shown) == sorted(index for index in expected if assets[index].style != "game-icon")
    assert {scene.asset for scene in scenes_of(planned, "heldout_style", Single)} == set(shown)


def test_some_concepts_are_withheld_in_the_whole_fluent_family(assets):
    families = [styles for styles in splits.withheld_styles(assets).values() if len(styles) > 1]
    assert families
    assert all(styles == {"fluent-3d", "fluent-color", "fluent-flat", "fluent-hc"} for styles in families)


def test_drawings_for_validation_are_in_no_training_scene(planned):
    kept = {scene.asset for scene in scenes_of(planned, "val", Single)}
    assert kept
    trained = {index for sample in planned if sample.split == "train" for index in drawings_in(sample.scene)}
    assert not kept & trained


def test_withheld_colours_of_an_object_are_in_no_training_scene(assets, planned):
    withheld = [*scenes_of(planned, "heldout_color", Recolored), *scenes_of(planned, "heldout_color", Glyph)]
    couples = {(assets[scene.asset].held_by, scene.color) for scene in withheld}
    trained = [*scenes_of(planned, "train", Recolored), *scenes_of(planned, "train", Glyph)]
    named = [scene for scene in trained if assets[scene.asset].style != "game-icon"]
    assert couples
    assert not couples & {(assets[scene.asset].held_by, scene.color) for scene in named}


def test_a_recoloured_pair_never_takes_a_withheld_colour(tmp_path):
    material = small.material(tmp_path)
    orange = [
        index for index, asset in enumerate(material.assets) if splits.color_split(asset, "orange") == splits.COLOR
    ]
    free = [index for index, asset in enumerate(material.assets) if splits.color_split(asset, "orange") == splits.TRAIN]
    scene = RecoloredPair((*orange[:12], *free[:12]), "left", ("orange", "orange"), "white", 0)
    drawn = draw(scene, material)
    assert drawn is not None
    assert set(drawn.about["assets"]) < {material.assets[index].name for index in free}


def test_withheld_couples_of_objects_are_in_no_training_pair(assets, planned):
    def couples(split):
        return {
            frozenset({assets[scene.first].held_by, assets[scene.second].held_by})
            for scene in scenes_of(planned, split, Pair)
        }

    assert couples("heldout_pair")
    assert not couples("heldout_pair") & couples("train")


def test_withheld_numbers_of_an_object_are_in_no_training_scene(assets, planned):
    def couples(split):
        return {(assets[scene.asset].held_by, scene.number) for scene in scenes_of(planned, split, Count)}

    assert couples("heldout_count")
    assert not couples("heldout_count") & couples("train")


def test_the_whole_data_set_has_eleven_thousand_characters_of_known_styles():
    amounts = Amounts().characters
    assert sum(number for _, number in amounts) == 11_000
    assert {style for style, _ in amounts} == set(DESCRIBERS)


def test_leaving_a_kind_out_leaves_it_out(assets):
    planned = plan(assets, [], kinds=[kind for kind in KINDS if kind != "badge"], amounts=small.SMALL)
    assert "badge" not in {sample.scene.kind for sample in planned}
