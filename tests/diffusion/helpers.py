"""What the diffusion tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dalle3 import compiled
from diffusion import winograd, winograd_native

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(name: str) -> dict[str, Any]:
    """The golden fixture `name`, its exact float16 tensors as float32."""
    return _float32(torch.load(GOLDEN / f"{name}.pt", weights_only=True))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest magnitude expected."""
    assert found.shape == expected.shape, f"found {tuple(found.shape)}, expected {tuple(expected.shape)}"
    scale = expected.double().abs().max().clamp(min=1e-30)
    return ((found.double() - expected.double()).abs().max() / scale).item()


@contextmanager
def convolving(engine: str) -> Iterator[None]:
    """Winograd's convolutions by "native" C, where there is a compiler, or by "operators"."""
    if engine == "native" and compiled.library(winograd_native.SOURCE) is None:
        pytest.skip("no C compiler here")
    winograd.use(compiled.library if engine == "native" else None)
    yield
    winograd.use(None)


def _float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.float16 else value
    return {key: _float32(item) for key, item in value.items()} if isinstance(value, dict) else value
