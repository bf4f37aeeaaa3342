"""Captions of what the data set does not show: none is drawn, none is withheld."""

from __future__ import annotations

import re

import pytest

from recipes.picto import splits
from recipes.picto.unseen import unseen
from recipes.picto.vocabulary import NUMBERS, STYLES
from recipes.picto.words import noun, plural
from tests.recipes import picto_material as small


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """Of every third concept one style is missing, another of each."""
    every = small.assets(tmp_path_factory.mktemp("drawings"))
    missing = {
        f"{style}/{concept.hexcode}" for style, concept in zip(small.STYLES, small.concepts()[::3], strict=False)
    }
    return [asset for asset in every if asset.name not in missing]


@pytest.fixture(scope="module")
def lines(assets):
    return unseen(assets)


def concept_of(assets, style):
    return {noun(asset.concept): asset for asset in assets if asset.style == style}


def test_each_thing_is_asked_for_in_the_styles_it_was_not_drawn_in(assets, lines):
    names, wanted = {noun(concept) for concept in small.concepts()}, set()
    for style in {asset.style for asset in assets} - {"game-icon"}:
        wanted |= {f"a {name}, {STYLES[style][0]}" for name in names - concept_of(assets, style).keys()}
    alone = [line for line in lines if line.split(", ")[0].removeprefix("a ") in names]
    canonical = {phrases[0] for style, phrases in STYLES.items() if style in small.STYLES}
    assert wanted
    assert {line for line in alone if line.split(", ")[1] in canonical} == wanted


def test_nothing_is_asked_for_that_a_split_withholds(assets, lines):
    by_name = {noun(asset.concept): asset for asset in assets}
    found = {"color": 0, "pair": 0, "count": 0}
    for line in lines:
        thing = line.rsplit(", ", 1)[0]
        if match := re.fullmatch(rf"({'|'.join(NUMBERS.values())}) (.*)", thing):
            number = {word: number for number, word in NUMBERS.items()}[match[1]]
            asset = next(asset for name, asset in by_name.items() if plural(name) == match[2])
            assert splits.count_split(asset, number) == splits.TRAIN
            found["count"] += 1
        elif two := re.fullmatch(r"an? (.*) (?:to the (?:left|right) of|above|below) an? (.*)", thing):
            words = [part.split(" ", 1) if part not in by_name else ["", part] for part in two.groups()]
            one, other = (by_name[name] for _, name in words)
            assert splits.pair_split(one, other) == splits.TRAIN
            assert all(splits.color_split(by_name[name], color) == splits.TRAIN for color, name in words if color)
            found["pair"] += 1
        elif thing.split(" ", 1)[1] not in by_name:
            color, name = thing.split(" ", 2)[1:]
            assert splits.color_split(by_name[name], color) == splits.TRAIN
            found["color"] += 1
    assert min(found.values()) > 1000


def test_no_style_is_asked_for_that_a_concept_is_withheld_in(assets, lines):
    withheld = splits.withheld_styles(assets)
    assert any(withheld.values())
    for asset in assets:
        for style in withheld[asset.held_by]:
            assert f"a {noun(asset.concept)}, {STYLES[style][0]}" not in lines


def test_the_same_captions_every_time(assets, lines):
    assert unseen(assets) == lines
