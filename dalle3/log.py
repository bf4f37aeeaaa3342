"""What the program says while it works: short lines on standard error."""

from __future__ import annotations

import sys


def note(message: str) -> None:
    """Prints one line for the user on standard error."""
    print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Prints one line about something the user may not have wanted."""
    note(f"warning: {message}")
