"""What a user can get wrong. The doors print these as one line and exit with code 2.

Every message says what was found, what was expected and what to do.
"""

from __future__ import annotations


class Dalle3Error(Exception):
    """A mistake a user can correct."""


class ConfigError(Dalle3Error, ValueError):
    """A configuration or flag that cannot be."""


class CheckpointError(Dalle3Error, ValueError):
    """A file of weights that is missing, broken, unsafe, or not what it was given as."""


class PromptError(Dalle3Error, ValueError):
    """A prompt that cannot be tokenized or is too long."""


class CodesError(Dalle3Error, ValueError):
    """Image codes of the wrong shape, type or range."""


class ImageError(Dalle3Error, ValueError):
    """A picture that cannot be read, or whose size the network cannot take."""


class DataError(Dalle3Error, ValueError):
    """A data set that cannot be trained on."""


class OutputError(Dalle3Error, OSError):
    """A file that cannot be written."""


class DependencyError(Dalle3Error, ImportError):
    """An optional package that is needed and absent; the message names the extra that brings it."""


class TrainingError(Dalle3Error, RuntimeError):
    """A run that cannot go on, or cannot be continued."""
