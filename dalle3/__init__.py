"""Open two-stage text-to-image: `from dalle3 import load; load("model").generate("a red circle", n=4)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dalle3.assemble import load as load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # imported on first use: `dalle3 --help` must not wait for torch
        from dalle3.assemble import load

        return load
    raise AttributeError(f"module 'dalle3' has no attribute {name!r}")
