from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dalle3.tokenizers.merges import Merges

LETTERS = 3


@st.composite
def tables(draw):
    """Merges whose parts are letters or made by earlier merges, as those of trained tokenizers are."""
    pairs: dict[tuple[int, int], int] = {}
    for rank in range(draw(st.integers(0, 12))):
        known = st.integers(0, LETTERS + rank - 1)
        pairs.setdefault((draw(known), draw(known)), len(pairs))
    return {pair: rank for rank, pair in enumerate(pairs) if max(pair) < LETTERS + rank}


def merged_by_definition(ids, ranks, products):
    ids = list(ids)
    while found := [(ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in ranks]:
        rank, i = min(found)
        ids[i : i + 2] = [products[rank]]
    return ids


@given(ranks=tables(), ids=st.lists(st.integers(0, LETTERS - 1), max_size=40))
def test_merging_is_replacing_the_leftmost_earliest_pair_until_none_is_left(ranks, ids):
    products = range(LETTERS, LETTERS + 13)
    assert Merges(ranks, products).apply(ids) == merged_by_definition(ids, ranks, products)


def test_overlapping_pairs_merge_from_the_left():
    assert Merges({(0, 0): 0}, [1]).apply([0, 0, 0]) == [1, 0]
