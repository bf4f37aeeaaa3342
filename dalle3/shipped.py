"""Where models are that need no path: those that come with the package, by name, and the one drawn with by default."""

from __future__ import annotations

from pathlib import Path

from dalle3.errors import CheckpointError
from dalle3.runtime import home

ASSETS = Path(__file__).parent / "assets"  # model folders, as `dalle3 pack` writes them
DEFAULT = "picto"


def shipped() -> dict[str, Path]:
    """The models that come with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(ASSETS.glob("*/config.json"))}


def located(path: Path) -> Path:
    """The path, or where the model of the package lies that it names, or its part, such as picto/clip.

    A file or folder of that name here goes before.
    """
    name = path.parts[0] if path.parts else ""
    return ASSETS / path if name in shipped() and not Path(name).exists() else path


def default_model(*, flag: str = "--dalle_path") -> Path:
    """The folder of the model that is used when none is named: the user's own, else the one of the package.

    Args:
        flag: that names another.
    Raises:
        CheckpointError: there is none on this machine.
    """
    own = home() / "default"
    if own.is_dir():
        return own
    if (found := shipped().get(DEFAULT)) is not None:
        return found
    raise CheckpointError(
        f"no default model is in this build, and none in {own}: put or link a model folder there, or pass {flag}"
    )
