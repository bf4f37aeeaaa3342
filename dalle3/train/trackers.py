"""Where metrics and sample pictures go besides the run's own files: TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from dalle3.config import option
from dalle3.errors import ConfigError, DependencyError
from dalle3.files import whole_file

WANDB_ID = "wandb.json"


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """Who else is told of a run."""

    tensorboard: bool = option(False, help="metrics and samples for TensorBoard too, in tensorboard/ of the run")
    wandb: bool = option(False, help="metrics and samples to Weights & Biases too; offline with WANDB_MODE=offline")
    wandb_name: str = option("", help="project there; implies --wandb")
    wandb_entity: str = option("", help="team or user there; implies --wandb")


class Tracker(Protocol):
    """Something that is told of a run while it goes on."""

    def log(self, row: dict[str, Any]) -> None:
        """Takes the metrics of `row["step"]`."""
        ...

    def picture(self, step: int, picture: Image.Image) -> None:
        """Takes what the model draws after `step` steps."""
        ...

    def close(self) -> None:
        """Sends what is still to be sent."""
        ...


class TensorBoard:
    """Writes event files into `folder`/tensorboard; of a continued run, steps after `done` are taken back.

    Raises:
        DependencyError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, *, done: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            message = f"--tensorboard needs tensorboard ({error}); pip install 'dalle3[tensorboard]'"
            raise DependencyError(message) from None
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def log(self, row: dict[str, Any]) -> None:
        """Takes the metrics of `row["step"]`."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])

    def picture(self, step: int, picture: Image.Image) -> None:
        """Takes what the model draws after `step` steps."""
        import numpy as np

        self.writer.add_image("samples", np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is still to be written."""
        self.writer.close()


class Wandb:
    """Sends to Weights & Biases; offline it writes into `folder`/wandb. A continued run keeps its number there.

    Steps are a metric of their own: those a continued run makes again would be refused as W&B's own steps.

    Args:
        config: what the run was asked for, shown beside it.
    Raises:
        DependencyError: wandb is not installed.
        ConfigError: it cannot start, as nobody is logged in.
    """

    def __init__(self, folder: Path, *, project: str, entity: str, config: dict[str, Any], done: int) -> None:
        try:
            import wandb  # type: ignore[import-not-found]
        except ImportError as error:
            message = f"--wandb needs wandb ({error}); pip install 'dalle3[wandb]', or leave the flag out"
            raise DependencyError(message) from None
        self.image = wandb.Image
        number = _wandb_id(folder, new=done == 0)
        try:
            offline = wandb.setup().settings.mode == "offline"
            self.run = wandb.init(
                project=project,
                entity=entity or None,
                config=config,
                dir=str(folder),
                id=number,
                resume=None if offline else "allow",  # offline there is nobody to ask; the number says the same
            )
        except wandb.Error as error:
            reason = str(error).splitlines()[0]
            message = f"--wandb cannot start ({reason}); log in with `wandb login`, or set WANDB_MODE=offline"
            raise ConfigError(message) from None
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, row: dict[str, Any]) -> None:
        """Takes the metrics of `row["step"]`."""
        self.run.log(row)

    def picture(self, step: int, picture: Image.Image) -> None:
        """Takes what the model draws after `step` steps."""
        self.run.log({"samples": self.image(picture), "step": step})

    def close(self) -> None:
        """Waits until all is sent."""
        self.run.finish()


def open_trackers(
    config: TrackerConfig, folder: Path, *, project: str, described: dict[str, Any], done: int
) -> list[Tracker]:
    """Those the flags ask for.

    Args:
        project: at Weights & Biases, where no flag names one.
        described: what config.json says of the run.
        done: steps a continued run has made; 0 begins anew.
    Raises:
        DependencyError, ConfigError: as `TensorBoard` and `Wandb`.
    """
    found: list[Tracker] = [TensorBoard(folder, done=done)] if config.tensorboard else []
    if config.wandb or config.wandb_name or config.wandb_entity:
        project, entity = config.wandb_name or project, config.wandb_entity
        found.append(Wandb(folder, project=project, entity=entity, config=described, done=done))
    return found


def _wandb_id(folder: Path, *, new: bool) -> str:
    path = folder / WANDB_ID
    if path.is_file() and not new:
        return json.loads(path.read_text())["id"]
    number = secrets.token_hex(4)
    with whole_file(path) as partial:
        partial.write_text(json.dumps({"id": number}) + "\n")
    return number
