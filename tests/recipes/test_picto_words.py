"""Names, articles, plurals, colours and captions of picto."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from recipes.picto import captions
from recipes.picto.assets import Asset
from recipes.picto.characters import captions as character_captions
from recipes.picto.colors import color_shares, name_rgb, recolored, shares_of
from recipes.picto.concepts import Concept, icon_concept, load_concepts, slug
from recipes.picto.creatures import CREATURES
from recipes.picto.people import PEOPLE
from recipes.picto.portraits import Description, Options
from recipes.picto.render import Fragment
from recipes.picto.sources import CHARACTERS
from recipes.picto.vocabulary import COLORS, SYMBOLS
from recipes.picto.words import noun, plural, with_article, without_colors

WOLF = Concept(hexcode="1f43a", base="1f43a", label="wolf", group=3, subgroup="animal-mammal", tags=("face", "pack"))
DRAWING = Fragment(body="", box=(0, 0, 16, 16))


def rng() -> random.Random:
    return random.Random(0)


def square(red: int, green: int, blue: int) -> Image.Image:
    return Image.new("RGBA", (8, 8), (red, green, blue, 255))


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("wolf", "a wolf"),
        ("owl", "an owl"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("bread", "bread"),
        ("slice of bread", "a slice of bread"),
        ("grapes", "grapes"),
        ("bus", "a bus"),
        ("mount fuji", "mount fuji"),
    ],
)
def test_articles_follow_sound_number_and_substance(phrase, expected):
    assert with_article(phrase) == expected


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("grey wolf", "grey wolves"), ("fox", "foxes"), ("berry", "berries"), ("tomato", "tomatoes"), ("fish", "fish")],
)
def test_plurals_change_the_last_word(phrase, expected):
    assert plural(phrase) == expected


@pytest.mark.parametrize(
    ("label", "group", "expected"),
    [
        ("automobile", 5, "car"),
        ("woman: beard", 1, "woman with a beard"),
        ("four o’clock", 5, "clock showing four o'clock"),  # noqa: RUF001
        ("Mount Fuji", 5, "Mount Fuji"),
        ("Ophiuchus", SYMBOLS, "ophiuchus symbol"),
        ("red heart", SYMBOLS, "red heart"),
    ],
)
def test_concepts_are_called_what_one_sees(label, group, expected):
    assert noun(Concept(hexcode="1f", base="1f", label=label, group=group)) == expected


def test_colour_words_are_removed_unless_nothing_is_left():
    assert (without_colors("red apple"), without_colors("orange")) == ("apple", "orange")


def test_slugs_are_those_of_icon_sets():
    assert slug("Woman’s hat: Côte & more") == "womans-hat-cote-and-more"  # noqa: RUF001


@pytest.mark.parametrize("color", COLORS)
def test_every_colour_is_called_by_its_name(color):
    assert name_rgb(*COLORS[color]) == color


def test_colour_shares_count_only_opaque_pixels():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (*COLORS["red"], 255)
    rgba[2, :2] = (*COLORS["blue"], 255)
    rgba[3] = (*COLORS["green"], 100)
    assert color_shares(rgba) == {"red": 0.8, "blue": 0.2}


@pytest.mark.parametrize("color", ["green", "blue", "purple", "teal"])
def test_recoloured_objects_have_the_colour_asked_for(color):
    image = recolored(square(*COLORS["red"]), color)
    assert image is not None
    assert next(iter(shares_of(image))) == color


@pytest.mark.parametrize("color", ["black", "white", "gray", "red"])
def test_an_object_without_a_hue_or_already_of_that_colour_is_not_recoloured(color):
    assert recolored(square(*COLORS[color]), "red") is None


def test_the_canonical_caption_names_object_and_style():
    lines = captions.single(Asset(name="noto/1f43a", style="noto", concept=WOLF, drawing=DRAWING), {}, rng())
    assert lines[0] == "a wolf, cartoon emoji"
    assert "a wolf, a mammal, cartoon emoji" in lines


def test_a_colour_is_said_only_when_most_of_the_object_has_it():
    asset = Asset(name="noto/1f43a", style="noto", concept=WOLF, drawing=DRAWING)
    assert "a gray wolf, cartoon emoji" in captions.single(asset, {"gray": 0.6, "white": 0.4}, rng())
    assert "a wolf in gray and white, cartoon emoji" in captions.single(asset, {"gray": 0.5, "white": 0.4}, rng())
    assert not any("gray wolf" in line for line in captions.single(asset, {"gray": 0.5, "white": 0.4}, rng()))


def test_icons_known_by_file_name_alone_take_no_article():
    icon = Asset(
        name="game-icon/a", style="game-icon", concept=icon_concept("game-icon", "crystal-shrine-2"), drawing=DRAWING
    )
    assert captions.single(icon, {}, rng())[0] == "crystal shrine, silhouette icon"


def test_both_directions_of_a_relation_are_said():
    lines = captions.pair(["small key", "big house"], "right", "white", style="noto", rng=rng())
    assert lines[0] == "a small key to the right of a big house, cartoon emoji"
    assert lines[1] == "a big house to the left of a small key, cartoon emoji"


def test_captions_are_tidied_and_kept_once():
    assert captions.tidy(["a  wolf ", "a wolf", "an owl"]) == ["a wolf", "an owl"]


def test_emoji_names_come_without_flags_and_with_at_most_one_skin_tone(tmp_path):
    (tmp_path / "messages.json").write_text('{"subgroups": [{"order": 1, "message": "person"}]}')
    (tmp_path / "data.json").write_text(
        """[{"hexcode": "1F9D1", "label": "person", "group": 1, "subgroup": 1, "emoji": "x", "skins": [
            {"hexcode": "1F9D1-1F3FB", "label": "person: light skin tone", "emoji": "y"},
            {"hexcode": "1F9D1-2", "label": "people: light skin tone, dark skin tone", "emoji": "z"}]},
            {"hexcode": "1F1E6", "label": "a flag", "group": 9, "subgroup": 1, "emoji": "f"}]"""
    )
    found = load_concepts(tmp_path)
    assert list(found) == ["1f9d1", "1f9d1-1f3fb"]
    assert (found["1f9d1-1f3fb"].tone, found["1f9d1-1f3fb"].base) == ("light", "1f9d1")


def test_every_character_style_has_a_describer():
    assert {*PEOPLE, *CREATURES} == {source.style for source in CHARACTERS}


def test_a_monster_is_described_by_the_options_that_drew_it():
    options = Options(
        {
            "bodyColor": ["#3ca546"],
            "topVariant": "horns",
            "eyesVariant": "trio",
            "patternVariant": "belly01",
            "mouthVariant": "tinySmile",
            "backgroundColor": ["#c4e0fa"],
        }
    )
    described = CREATURES["critters"](options)
    assert described.who == "a green monster"
    assert described.parts == ["with two horns", "with three eyes", "with a belly patch"]
    assert described.mood == ["smiling"]


def test_a_character_is_described_in_full_first():
    description = Description("a blue robot", ["with one eye", "with a fin on its head"])
    lines = character_captions("voxel-bot", description, background="yellow", rng=rng())
    assert lines[0] == "a blue robot with one eye, with a fin on its head on a yellow background, voxel art"
    assert len(lines) == 6
