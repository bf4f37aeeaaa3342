"""Runs of `dalle3 train` that share a budget of minutes, survive being stopped, and go on where they were."""

from __future__ import annotations

import contextlib
import itertools
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
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--no_python", "--nproc_per_node")
SECONDS_TO_SAVE = 600  # torchrun's own patience, 30, is little for a step and a checkpoint on a busy machine


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training and the seconds it may take in all. Its folder knows how many it took: `spent.json`."""

    name: str
    arguments: tuple[str, ...]  # of `dalle3`
    folder: Path
    seconds: float
    processes: int = 1  # that train together

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
    calls = [_start(run) for run in runs]
    while any(call.process.poll() is None for call in calls):
        time.sleep(TICK)
        elapsed = time.monotonic() - began
        failed = any(call.process.poll() and not call.stopped_well for call in calls)
        for call in calls:
            over = elapsed >= call.seconds or time.monotonic() >= until or stop.is_set() or failed
            if over and call.process.poll() is None:
                call.process.terminate()
                call.process.wait()  # it saves
    for call in calls:
        _end(call, time.monotonic() - began)
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


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A run while it trains."""

    run: Run
    process: subprocess.Popen[bytes]
    seconds: float  # that it may still take
    log_start: int  # bytes of the log that are of calls before

    @property
    def said(self) -> str:
        return self.run.log.read_bytes()[self.log_start :].decode(errors="replace")

    @property
    def stopped_well(self) -> bool:
        """Whether a signal ended it, after it had saved or before it had begun.

        Under torchrun the code is 1 then, whether its processes saved or failed to: they say so.
        """
        code, said = self.process.returncode, self.said
        if self.run.processes == 1 or code != 1:
            return code == -signal.SIGTERM
        saved = "holds the model after" in said or "stopping after this step" not in said
        return saved and f"got signal: {signal.SIGTERM:d}" in said

    @property
    def complaint(self) -> str:
        """Why it failed: dalle3's line about it, else the last line before torchrun's own."""
        lines = self.said.splitlines()
        before = list(itertools.takewhile(lambda line: "torch/distributed/elastic" not in line, lines)) or [""]
        return next((line for line in lines if line.startswith("dalle3 train: ")), before[-1])


def _start(run: Run) -> _Call:
    run.folder.mkdir(parents=True, exist_ok=True)
    note(f"{run.name}: {run.spent / 60:.1f} of {run.seconds / 60:.1f} minutes are done; log in {run.log}")
    line, environment = [*DALLE3, *run.arguments], dict(os.environ)
    if run.processes > 1:
        line, environment = [*TORCHRUN, str(run.processes), *line], {**environment, **_divided(run.processes)}
    with run.log.open("ab") as log:
        before = log.tell()
        # Of its own session: a Ctrl-C reaches this program alone, which then asks each run to end once.
        process = subprocess.Popen(line, env=environment, stdout=log, stderr=log, start_new_session=True)
    return _Call(run=run, process=process, seconds=run.seconds - run.spent, log_start=before)


def _divided(processes: int) -> dict[str, str]:
    """The environment in which processes share the cores of this machine."""
    return {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # with it shared, a meeting hangs now and then
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SECONDS_TO_SAVE),
    }


def _end(call: _Call, seconds: float) -> None:
    run, code = call.run, call.process.returncode
    if code and not call.stopped_well:
        raise TrainingError(f"{run.name} ended with code {code}: {call.complaint} ({run.log})")
    run.note(seconds, done=code == 0 and "stopped early" not in call.said)
    note(f"{run.name}: {run.spent / 60:.1f} of {run.seconds / 60:.1f} minutes are done")
