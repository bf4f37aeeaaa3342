"""A run is a folder: what it was asked for, what it measured, what it drew, and its checkpoints.

runs/shapes/ config.json  metrics.jsonl  samples/step-00000500.png
             step-00001000/: a checkpoint folder; train/: what only the loop reads (optimizer, raw weights, position)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from dalle3.errors import ConfigError, Dalle3Error, TrainingError
from dalle3.files import reported, whole_file
from dalle3.train.optim import Plateau
from dalle3.train.trackers import Tracker

STEP = re.compile(r"step-(\d{8})")
FIXED = ("task", "model", "seed", "tokenizer", "codec", "tuning")  # what a continued run may not change


@dataclass
class Position:
    """Where a run stands: steps made, examples consumed, and samples skipped because they were broken."""

    step: int = 0
    consumed: int = 0
    skipped: int = 0
    plateau: Plateau = field(default_factory=Plateau)


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Where a run takes over from another program's: its position, and what Adam remembers of each parameter."""

    position: Position
    moments: dict[str, dict[str, Tensor]]


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics = path / "metrics.jsonl"
        self.trackers: list[Tracker] = []

    def begin(self, config: dict[str, Any], *, resume: str) -> Path | None:
        """The checkpoint to continue from, None for a new run; writes config.json.

        Args:
            config: a JSON object; of a continued run, the entries in `FIXED` must be what they were.
            resume: "never", "auto" (the latest checkpoint here, where there is one) or a checkpoint's folder.
        Raises:
            TrainingError: the folder holds a run that is not to be continued, or there is no such checkpoint.
            ConfigError: the run was begun with another model, seed or data.
        """
        for partial in self.path.glob("step-*.partial"):  # a process that was killed while it saved
            shutil.rmtree(partial)
        start = self._start(resume)
        if start is not None:
            _check_same(self._read_config(start.parent), config)
        with whole_file(self.path / "config.json") as partial:
            partial.write_text(json.dumps(config, indent=2) + "\n")
        return start

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step` steps."""
        return self.path / f"step-{step:08d}"

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(path for path in self.path.glob("step-*") if path.is_dir() and STEP.fullmatch(path.name))

    def prune(self, keep: int | None) -> None:
        """Removes all but the newest `keep` checkpoints; None keeps all."""
        for old in self.checkpoints()[: -keep if keep else 0]:
            shutil.rmtree(old)

    def log(self, row: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl, and tells the trackers."""
        with reported(self._metrics), self._metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for tracker in self.trackers:
            tracker.log(row)

    def forget_after(self, step: int) -> None:
        """Drops the metrics of steps that a continued run makes again."""
        if not self._metrics.exists():
            return
        lines = [line for line in self._metrics.read_text().splitlines() if _step_of(line) <= step]
        with whole_file(self._metrics) as partial:
            partial.write_text("".join(line + "\n" for line in lines))

    def save_sample(self, step: int, picture: Image.Image) -> None:
        """Keeps what the model draws after `step` steps, and shows it to the trackers."""
        with whole_file(self.path / "samples" / f"step-{step:08d}.png") as partial:
            picture.save(partial, "PNG")
        for tracker in self.trackers:
            tracker.picture(step, picture)

    def close(self) -> None:
        """Lets the trackers finish."""
        for tracker in self.trackers:
            tracker.close()

    def _start(self, resume: str) -> Path | None:
        found = self.checkpoints()
        if resume == "never":
            if found:
                raise TrainingError(f"{self.path} holds a run; pass --resume auto to continue it, or another --out")
            return None
        if resume == "auto":
            return found[-1] if found else None
        path = Path(resume)
        if not (path / "train" / "position.json").is_file():
            raise TrainingError(f"{path} is no checkpoint of a run; pass one of its step-… folders, or auto")
        return path

    def _read_config(self, folder: Path) -> dict[str, Any]:
        try:
            return json.loads((folder / "config.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise TrainingError(
                f"{folder / 'config.json'} cannot be read ({error}); the run cannot be continued"
            ) from None


@contextlib.contextmanager
def continuing(start: object) -> Iterator[None]:
    """Turns what goes wrong while a checkpoint is taken up into one line.

    Raises:
        TrainingError: it is damaged, or its parts are those of different models.
    """
    try:
        yield
    except Dalle3Error:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"{start} cannot be continued from ({reason}); it is damaged, or parts of it are of another model: "
            "pass an earlier checkpoint as --resume, or start anew"
        ) from None


def read_position(checkpoint: Path) -> Position:
    """Where the run stood when it wrote a checkpoint."""
    with continuing(checkpoint):
        stored = json.loads((checkpoint / "train" / "position.json").read_text())
        return Position(**{**stored, "plateau": Plateau(**stored.get("plateau", {}))})


def write_position(checkpoint: Path, position: Position) -> None:
    """Notes where the run stands."""
    (checkpoint / "train" / "position.json").write_text(json.dumps(dataclasses.asdict(position)) + "\n")


def _check_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    for name in FIXED:
        old, new = before.get(name), json.loads(json.dumps(now.get(name)))
        if isinstance(old, dict) and isinstance(new, dict):
            changed = [f"{key} {old.get(key)!r}, now {new.get(key)!r}" for key in new if old.get(key) != new.get(key)]
        else:
            changed = [] if old == new else [f"{old!r}, now {new!r}"]
        if changed:
            raise ConfigError(
                f"the run was begun with {name} {'; '.join(changed)}; leave that as it was, or start anew"
            )


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # a line cut short by a kill
        return float("inf")
