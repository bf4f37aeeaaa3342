"""What a run shows while it trains: a live bar on a terminal, lines of metrics elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

from tqdm import tqdm

from dalle3.log import note

BAR = "{n_fmt}/{total_fmt} {bar:20} {elapsed}, {remaining} left, {rate_fmt}{postfix}"
UNSHOWN = ("step", "grad_norm", "learning_rate")


class Progress(Protocol):
    """Where a run shows how far it is."""

    def advance(self) -> None:
        """Notes that a step is made."""
        ...

    def show(self, row: dict[str, Any]) -> None:
        """Shows the metrics of `row["step"]` until there are newer ones."""
        ...

    def keep(self, row: dict[str, Any]) -> None:
        """Shows rarer metrics of `row["step"]`, to stay."""
        ...


@contextlib.contextmanager
def progress(steps: int, *, done: int, speaks: bool = True) -> Iterator[Progress]:
    """Shows a run of `steps` steps of which `done` are made: on a terminal a bar, with other messages above it."""
    if not (speaks and sys.stderr.isatty()):
        yield _Lines(steps)
        return
    bar = tqdm(
        total=steps, initial=done, unit=" steps", bar_format=BAR, dynamic_ncols=True, smoothing=0.05, file=sys.stderr
    )
    with bar, contextlib.redirect_stderr(_Above(sys.stderr)):  # type: ignore[type-var]
        yield _Bar(bar, steps)


class _Lines:
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def advance(self) -> None:
        pass

    def show(self, row: dict[str, Any]) -> None:
        self.keep(row)

    def keep(self, row: dict[str, Any]) -> None:
        note(f"step {row['step']}/{self.steps}  {_told(row)}")


class _Bar(_Lines):
    def __init__(self, bar: tqdm, steps: int) -> None:
        super().__init__(steps)
        self.bar = bar

    def advance(self) -> None:
        self.bar.update()

    def show(self, row: dict[str, Any]) -> None:
        self.bar.set_postfix_str(_told({name: value for name, value in row.items() if name != "minutes_left"}))


class _Above:
    """A stream whose lines appear above the bar."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.line = stream, ""

    def write(self, text: str) -> int:
        *whole, self.line = (self.line + text).split("\n")
        for line in whole:
            tqdm.write(line, file=self.stream)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return True


def _told(row: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in UNSHOWN)
