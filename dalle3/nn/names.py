"""Parts of a network, named by their dotted names."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """Those of the dotted `names` in which `pattern` stands for some parts that follow each other.

    `layers.0` is in transformer.layers.0.1.scale, not in transformer.layers.01; `layers.[0-3].*` and `*.bias` are
    patterns of the shell, whose `*` also stands for several parts.
    """
    return [name for name in names if fnmatchcase(f".{name}.", f"*.{pattern}.*")]
