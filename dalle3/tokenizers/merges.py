"""Byte-pair merging of one word, for the tokenizers whose tables of merges are read here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

_GONE = -1  # takes part in no merge


class Merges:
    """A table of merges in the order they were learnt.

    Every pair must come after the merges that make its parts: then replacing the leftmost of the
    earliest pairs, again and again, is what all byte-pair encoders do, whatever their loops look like.
    """

    def __init__(self, ranks: Mapping[tuple[int, int], int], products: Sequence[int]) -> None:
        """Takes the rank of each pair, and the id that the pair of each rank becomes."""
        self._ranks = ranks
        self._products = products

    def apply(self, ids: Sequence[int]) -> list[int]:
        """The ids of a word after all merges; O(n log n) for n symbols.

        Args:
            ids: the symbols of the word, none negative.
        """
        ranks, count = self._ranks, len(ids)
        symbols = [*ids, _GONE]  # the last stands for both ends of the word
        following, preceding = [*range(1, count + 1), count], [*range(-1, count)]
        found = ((ranks.get(pair), left) for left, pair in enumerate(pairwise(ids)))
        queue = [(rank, left) for rank, left in found if rank is not None]
        heapify(queue)
        while queue:
            rank, left = heappop(queue)
            right = following[left]
            if ranks.get((symbols[left], symbols[right])) != rank:
                continue  # an earlier merge took one of the two
            symbols[left], symbols[right] = self._products[rank], _GONE
            following[left] = after = following[right]
            preceding[after] = left
            for start in (preceding[left], left):
                created = ranks.get((symbols[start], symbols[following[start]]))
                if created is not None:
                    heappush(queue, (created, start))
        return [symbol for symbol in symbols if symbol != _GONE]
