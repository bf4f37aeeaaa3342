"""Where the reference outputs are, and how far ours may be from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent


def golden(name: str) -> dict[str, Any]:
    """The reference file `name`, without its suffix; half-precision tensors become float32 (they are exact)."""
    return _float32(torch.load(FOLDER / f"{name}.pt", weights_only=True))


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """The largest difference over the largest magnitude; masked logits must be masked in both."""
    masked = reference < -1e38
    assert torch.equal(masked, ours < -1e38)
    difference = (ours.detach() - reference).masked_fill(masked, 0).abs().max()
    return float(difference / reference.masked_fill(masked, 0).abs().max())


def _float32(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _float32(item) for key, item in value.items()}
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value
