"""What a user of this library can get wrong."""

from __future__ import annotations


class DiffusionError(ValueError):
    """A mistake a user can correct; the message says what was found, what was expected and what to do."""


class ConfigError(DiffusionError):
    """A configuration that cannot be built."""


class WeightsError(DiffusionError):
    """Weights that do not belong to the network they were given to."""


class ShapeError(DiffusionError):
    """A tensor whose size does not fit the network or the operation it was given to."""
