"""Runs of `dalle3 train` that share a budget of minutes, survive being stopped, and go on where they were."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
import os
import shlex
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
class Phase:
    """A stretch of a training, which continues the stretch before."""

    arguments: tuple[str, ...]  # of `dalle3`
    share: float = 1.0  # of the training's seconds


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training and the seconds it may take in all. Its folder knows how many it took: `spent.json`."""

    name: str
    phases: tuple[Phase, ...]
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

    def now(self) -> tuple[Phase, float]:
        """The phase that is to be trained now, and the seconds left of it."""
        ends = [self.seconds * share for share in itertools.accumulate(phase.share for phase in self.phases)]
        ends[-1] = self.seconds  # whatever rounding made of the sum
        place = bisect.bisect_right(ends[:-1], self.spent)
        return self.phases[place], ends[place] - self.spent

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
    calls, failed = [_start(run) for run in runs], []
    while calls:
        time.sleep(TICK)
        over = bool(failed) or time.monotonic() >= until or stop.is_set()
        for call in calls:
            if (over or call.over) and call.process.poll() is None:
                call.process.terminate()
                call.process.wait()  # it saves
        ended = [call for call in calls if call.process.poll() is not None]
        calls = [call for call in calls if call not in ended]
        failed += [call for call in ended if not _end(call)]
        if not over and not failed:
            calls += [_start(call.run) for call in ended if call.over and not call.run.finished]
    if failed:
        raise TrainingError("; ".join(call.complaint for call in failed))
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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Call:
    """A run while it trains: one phase, or what is left of it."""

    run: Run
    process: subprocess.Popen[bytes]
    began: float  # a `time.monotonic`
    seconds: float  # that the phase may still take
    log_start: int  # bytes of the log that are of calls before

    @property
    def over(self) -> bool:
        """Whether the time of the phase is used up."""
        return time.monotonic() >= self.began + self.seconds

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
        """That it failed, and why: dalle3's line about it, else the last line before torchrun's own."""
        lines = self.said.splitlines()
        before = list(itertools.takewhile(lambda line: "torch/distributed/elastic" not in line, lines)) or [""]
        why = next((line for line in lines if line.startswith("dalle3 train: ")), before[-1])
        return f"{self.run.name} ended with code {self.process.returncode}: {why} ({self.run.log})"


def _start(run: Run) -> _Call:
    run.folder.mkdir(parents=True, exist_ok=True)
    phase, seconds = run.now()
    typed = f"torchrun --standalone --nproc_per_node {run.processes} $(which dalle3)" if run.processes > 1 else "dalle3"
    note(f"{typed} {shlex.join(phase.arguments)}")
    note(f"{run.name}: {run.spent / 60:.1f} of {run.seconds / 60:.1f} minutes are done; log in {run.log}")
    line, environment = [*DALLE3, *phase.arguments], dict(os.environ)
    if run.processes > 1:
        line, environment = [*TORCHRUN, str(run.processes), *line], {**environment, **_divided(run.processes)}
    with run.log.open("ab") as log:
        before, began = log.tell(), time.monotonic()
        # Of its own session: a Ctrl-C reaches this program alone, which then asks each run to end once.
        process = subprocess.Popen(line, env=environment, stdout=log, stderr=log, start_new_session=True)
    return _Call(run=run, process=process, began=began, seconds=seconds, log_start=before)


def _divided(processes: int) -> dict[str, str]:
    """The environment in which processes share the cores of this machine."""
    return {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # with it shared, a meeting hangs now and then
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SECONDS_TO_SAVE),
    }


def _end(call: _Call) -> bool:
    """Notes the time that a call took; False where it failed, which counts as no time."""
    run, code = call.run, call.process.returncode
    if code and not call.stopped_well:
        return False
    run.note(time.monotonic() - call.began, done=code == 0 and "stopped early" not in call.said)
    note(f"{run.name}: {run.spent / 60:.1f} of {run.seconds / 60:.1f} minutes are done")
    return True
