"""State dicts: prefixes, what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, as plain tensors, in order."""
    return {str(name): value.detach() for name, value in state.items() if isinstance(value, Tensor)}


def is_state_dict(value: Any) -> bool:
    """Whether `value` is a dictionary of nothing but tensors, at least one."""
    return isinstance(value, dict) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def split(state: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors whose names begin with one of `prefixes`, and the names of the others."""
    ours = {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}
    return ours, [name for name in state if name not in ours]


def without_wrapper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the "module." that DataParallel and DeepSpeed put before every name."""
    wrapped = bool(state) and all(name.startswith("module.") for name in state)
    return under(state, "module.") if wrapped else dict(state)


def dropped(names: Iterable[str], reasons: Mapping[str, str], *, prefix: str = "") -> tuple[str, ...]:
    """One "key: reason" for each first part of `names`; keys nobody foresaw say so.

    Args:
        reasons: by the first part of a name.
        prefix: where in the file the names stand.
    """
    counts = Counter(name.split(".")[0] if "." in name else name for name in names)
    whole = set(names)
    return tuple(
        f"{prefix}{part if part in whole else f'{part}.* ({count} tensors)'}: "
        f"{reasons.get(part, 'not a part of this model')}"
        for part, count in counts.items()
    )
