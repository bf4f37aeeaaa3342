"""Decisions that depend on names alone: the same on every machine, for any subset and in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def number(*parts: object) -> int:
    """An integer in [0, 2^64) that depends on the parts alone."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def fraction(*parts: object) -> float:
    """A number in [0, 1] that depends on the parts alone, evenly spread over different parts."""
    return number(*parts) / 2**64


def shuffled(items: Iterable[str], *parts: object) -> list[str]:
    """The items in an order that depends on them and on the parts alone."""
    return sorted(items, key=lambda item: fraction(*parts, item))
