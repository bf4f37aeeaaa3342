"""Ctrl-C, between two steps instead of in the middle of a file."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from dalle3.log import note


class Interrupt:
    """Remembers that Ctrl-C was pressed; pressed again, it interrupts at once."""

    def __init__(self) -> None:
        self.pressed = False

    def __call__(self, *_: Any) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
        note("\nstopping; what is finished is kept (Ctrl-C again to stop at once)")


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[Interrupt]:
    """Lets Ctrl-C end the work where the block looks at `pressed`, instead of in the middle of a file."""
    interrupt = Interrupt()
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
