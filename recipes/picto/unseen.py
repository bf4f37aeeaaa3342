"""`python -m recipes.picto.unseen --cache DIR --out FILE`: captions of what no picture of the data set shows.

Things in styles they were not drawn in, in other colours, beside other things, so many times: what a DALLE is to draw
from what it knows of the parts, and may be rewarded for (`dalle3 train reward --captions FILE`). Nothing is among them
that a split withholds to measure by.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from dalle3.errors import Dalle3Error
from dalle3.files import whole_file
from dalle3.log import note
from recipes.picto import captions, splits
from recipes.picto.assets import Asset
from recipes.picto.fetch import enter_environment, fetch
from recipes.picto.plan import RELATIONS, things_by_style
from recipes.picto.sources import EMOJI
from recipes.picto.vocabulary import HUES, NUMBERS, STYLES, THINGS
from recipes.picto.words import noun, without_colors

_SEED = 20261129
_THINGS_TIMES = 2  # a thing of everyday is asked for more often than a symbol


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the file and returns the exit code: 0, or 2 for a mistake the user can correct."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m recipes.picto.unseen", description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="the cache of recipes.picto.build")
    parser.add_argument("--out", type=Path, required=True, help="text file to write, one caption a line")
    args = parser.parse_args(arguments)
    try:
        enter_environment(args.cache.resolve(), module="recipes.picto.unseen", arguments=arguments)
        lines = _captions(args.cache.resolve())
        with whole_file(args.out) as partial:
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except Dalle3Error as error:
        note(f"error: {error}")
        return 2
    note(f"{args.out}: {len(lines)} captions")
    return 0


def _captions(cache: Path) -> list[str]:
    from recipes.picto.make import gather  # needs the build's environment

    fetch(cache)
    return unseen(gather(cache).assets)


def unseen(assets: Sequence[Asset]) -> list[str]:
    """Captions of couples, colours, pairs and counts of what is drawn in training, none of which a split withholds.

    Those of one thing in a new style are all there, of things of everyday twice; the others are drawn by chance.
    """
    withheld, rng = splits.withheld_styles(assets), random.Random(_SEED)
    things = [[assets[index] for index in indices] for indices in things_by_style(assets, withheld)]
    lines = list(_in_new_styles(assets, withheld))
    for make, number in ((_recolored, 4000), (_pairs, 1500), (_recolored_pairs, 1500), (_counts, 3000)):
        lines += islice(make(things, rng), number)
    return lines


def _in_new_styles(assets: Sequence[Asset], withheld: Mapping[str, frozenset[str]]) -> Iterator[str]:
    """Each emoji that training draws, in each emoji style in which no split, withheld or not, has a drawing of it."""
    drawn, trained = defaultdict(set), {}
    for asset in assets:
        if asset.concept.hexcode and not asset.concept.tone:
            drawn[asset.concept.hexcode].add(asset.style)
            if splits.drawing_split(asset, withheld) == splits.TRAIN:
                trained[asset.concept.hexcode] = asset.concept
    for hexcode, concept in trained.items():
        for style in (source.style for source in EMOJI):
            if style not in drawn[hexcode] and style not in withheld[concept.base]:
                phrase = f"{captions.phrase_of(concept)}, {STYLES[style][0]}"
                yield from [phrase] * (_THINGS_TIMES if concept.group in THINGS else 1)


def _recolored(things: Sequence[list[Asset]], rng: random.Random) -> Iterator[str]:
    while True:
        asset, color = rng.choice(rng.choice(things)), rng.choice(HUES)
        if splits.color_split(asset, color) == splits.TRAIN:
            yield captions.recolored(asset.concept, color, asset.style, rng)[0]


def _pairs(things: Sequence[list[Asset]], rng: random.Random) -> Iterator[str]:
    while True:
        one, other = rng.sample(rng.choice(things), 2)
        if splits.pair_split(one, other) == splits.TRAIN:
            yield _pair([noun(one.concept), noun(other.concept)], one.style, rng)


def _recolored_pairs(things: Sequence[list[Asset]], rng: random.Random) -> Iterator[str]:
    while True:
        two, colors = rng.sample(rng.choice(things), 2), rng.sample(HUES, 2)
        names = [f"{color} {without_colors(noun(asset.concept))}" for color, asset in zip(colors, two, strict=True)]
        withheld = [splits.color_split(asset, color) for color, asset in zip(colors, two, strict=True)]
        if withheld == [splits.TRAIN] * 2 and splits.pair_split(*two) == splits.TRAIN:
            yield _pair(names, two[0].style, rng)


def _pair(names: Sequence[str], style: str, rng: random.Random) -> str:
    return captions.pair(names, rng.choice(RELATIONS), "white", style=style, rng=rng)[0]


def _counts(things: Sequence[list[Asset]], rng: random.Random) -> Iterator[str]:
    while True:
        asset, number = rng.choice(rng.choice(things)), rng.choice(list(NUMBERS))
        if splits.count_split(asset, number) == splits.TRAIN:
            yield captions.count(noun(asset.concept), number, "white", style=asset.style, rng=rng)[0]


if __name__ == "__main__":
    sys.exit(main())
