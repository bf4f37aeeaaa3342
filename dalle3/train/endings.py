"""How a run ends before its last step: it is asked to, or another of its processes is no more."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from dalle3.errors import ConfigError, TrainingError
from dalle3.log import note
from dalle3.train.parallel import Parallel
from dalle3.train.run import RunFolder


@contextlib.contextmanager
def lost_processes(run: RunFolder, parallel: Parallel) -> Iterator[None]:
    """Turns the failed exchange with a process that is no more into one line.

    Raises:
        TrainingError: which checkpoint to continue from.
    """
    try:
        yield
    except RuntimeError as error:  # gloo raises nothing more exact
        ours = isinstance(error, TrainingError) or parallel.world == 1
        if ours or not any(sign in str(error) for sign in ("gloo", "NCCL", "onnection")):
            raise
        kept = run.checkpoints()
        where = f"the last checkpoint is {kept[-1]}; --resume auto continues there" if kept else "nothing is saved yet"
        raise TrainingError(f"process {parallel.rank} of {parallel.world}: another process ended; {where}") from None


@contextlib.contextmanager
def uncompilable() -> Iterator[None]:
    """Turns the failure of torch.compile into one line.

    Raises:
        ConfigError: what it failed for.
    """
    try:
        yield
    except Exception as error:  # the compiler's errors have no class in common
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"--compile failed here ({reason.strip()}); leave the flag out") from None


@contextlib.contextmanager
def interruptible(*, speaks: bool = True) -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets; a second Ctrl-C interrupts at once. Only the main thread can catch them."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        if speaks:
            note("stopping after this step and saving (Ctrl-C again to stop at once)")
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
