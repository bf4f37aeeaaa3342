"""What the program says while it works: short lines on standard error."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def note(message: str) -> None:
    """Prints one line for the user on standard error."""
    print(message, file=sys.stderr, flush=True)


def note_own(owner: str, settings: Mapping[str, float]) -> None:
    """Says which settings are in force because `owner`, a part of the model, brings them; nothing where none is."""
    if settings:
        note(f"the {owner}'s own settings: {', '.join(f'{name} {value:g}' for name, value in settings.items())}")


def warn(message: str) -> None:
    """Prints one line about something the user may not have wanted."""
    note(f"warning: {message}")
