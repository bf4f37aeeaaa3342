"""Where metrics go besides the run's own file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dalle3.errors import DependencyError


def wandb_log(project: str, entity: str, *, config: dict[str, Any], folder: Path) -> Callable[[dict[str, Any]], None]:
    """What sends rows of metrics to Weights & Biases; offline it writes into the run's folder.

    Raises:
        DependencyError: wandb is not installed.
    """
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError:
        raise DependencyError("--wandb_name needs wandb; pip install wandb, or leave the flag out") from None
    run = wandb.init(project=project, entity=entity or None, config=config, dir=str(folder))
    return lambda row: run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])
