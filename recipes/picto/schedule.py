"""Runs of `dalle3 train` that share a budget of minutes, survive being stopped, and go on where they were."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dalle3.errors import TrainingError
from dalle3.files import whole_file
from dalle3.log import note

TICK = 0.5  # seconds between looks at the runs
DALLE3 = (sys.executable, "-c", "import sys; from dalle3.cli import main; sys.exit(main())")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training and the seconds it may take in all. Its folder knows how many it took: `spent.json`."""

    name: str
    arguments: tuple[str, ...]  # of `dalle3`
    folder: Path
    seconds: float

    @property
    def spent(self) -> float:
        """Seconds it took until now, in this call and those before."""
        path = self.folder / "spent.json"
        return json.loads(path.read_text())["seconds"] if path.exists() else 0.0

    @property
    def finished(self) -> bool:
        """Whether it made all its steps, or has used its time up."""
        path = self.folder / "spent.json"
        return path.exists() and (json.loads(path.read_text())["done"] or self.spent >= self.seconds)

    @property
    def checkpoint(self) -> Path:
        """Its newest checkpoint.

        Raises:
            TrainingError: there is none.
        """
        found = sorted(path for path in self.folder.glob("step-*") if (path / "config.json").exists())
        if not found:
            raise TrainingError(f"{self.folder} holds no checkpoint of {self.name}; see {self.log}")
        return found[-1]

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder.with_suffix(".log")

    def note(self, seconds: float, *, done: bool) -> None:
        """Adds to the seconds it took."""
        before = self.spent
        with whole_file(self.folder / "spent.json") as partial:
            partial.write_text(json.dumps({"seconds": before + seconds, "done": done}) + "\n")


@contextlib.contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(runs: Sequence[Run], *, until: float, stop: threading.Event) -> bool:
    """Trains side by side until each has used its time up; True where nothing cut that short.

    Args:
        runs: those that are not finished.
        until: the `time.monotonic` at which all are stopped.
        stop: the same, when set.
    Raises:
        TrainingError: one failed; the others are stopped, and saved.
    """
    began = time.monotonic()
    left = {run.name: (run, run.seconds - run.spent) for run in runs}
    processes = {run.name: _start(run) for run in runs}
    while any(process.poll() is None for process in processes.values()):
        time.sleep(TICK)
        elapsed = time.monotonic() - began
        failed = any(process.poll() for process in processes.values())
        for name, process in processes.items():
            over = elapsed >= left[name][1] or time.monotonic() >= until or stop.is_set() or failed
            if over and process.poll() is None:
                process.terminate()
                process.wait()  # it saves
    for run, _ in left.values():
        _end(run, processes[run.name].returncode, time.monotonic() - began)
    return all(run.finished for run in runs)


def call_all(arguments: Sequence[str], *, processes: int) -> None:
    """Runs a command of dalle3 to its end, in processes that divide its work among them as those of torchrun do.

    Raises:
        TrainingError: it failed; it has said why.
    """
    places = [{"RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": "0"} for rank in range(processes)]
    started = [subprocess.Popen([*DALLE3, *arguments], env={**os.environ, **place}) for place in places]
    if code := max([process.wait() for process in started], key=abs):
        raise TrainingError(f"dalle3 {arguments[0]} ended with code {code}; see above")


def _start(run: Run) -> subprocess.Popen[bytes]:
    run.folder.mkdir(parents=True, exist_ok=True)
    note(f"{run.name}: {run.spent / 60:.1f} of {run.seconds / 60:.1f} minutes are done; log in {run.log}")
    with run.log.open("ab") as log:
        # Of its own session: a Ctrl-C reaches this program alone, which then asks each run to end once.
        return subprocess.Popen([*DALLE3, *run.arguments], stdout=log, stderr=log, start_new_session=True)


def _end(run: Run, code: int, seconds: float) -> None:
    if code not in (0, -signal.SIGTERM):  # the latter where it was stopped before it had begun
        lines = run.log.read_text(errors="replace").splitlines()
        raise TrainingError(f"{run.name} ended with code {code}: {lines[-1] if lines else ''} ({run.log})")
    run.note(seconds, done=code == 0 and b"stopped early" not in run.log.read_bytes()[-2000:])
    note(f"{run.name}: {run.spent / 60:.1f} of {run.seconds / 60:.1f} minutes are done")
