"""The build's own Python environment, and the pinned packages, downloaded by the registries' own clients.

Everything stays below one cache folder; nothing is installed elsewhere:
    venv/      the packages of requirements.txt
    archives/  what was downloaded, checked against LOCK.json
    unpacked/  one folder for each archive, named after its style
    drawings/  objects already rendered
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from dalle3.errors import DataError, DependencyError
from dalle3.files import sha256, whole_folder
from dalle3.log import note, warn
from recipes.picto.sources import CLIP_ART, NPM, Source

HERE = Path(__file__).parent


def enter_environment(cache: Path, *, module: str, arguments: Sequence[str]) -> None:
    """Returns inside the build's environment; outside, makes it if need be and starts `module` again in it.

    Raises:
        DependencyError: pip could not install the pinned packages.
    """
    home = cache / "venv"
    if Path(sys.prefix).resolve() == home.resolve():
        return
    python = home / "bin" / "python"
    if not (home / ".ok").exists():
        note(f"making the build's environment in {home}")
        _call([sys.executable, "-m", "venv", str(home)])
        _call([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", _requirements()])
        (home / ".ok").touch()
    os.execv(python, [str(python), "-m", module, *arguments])


def fetch(cache: Path) -> dict[str, str]:
    """The SHA-256 of every package by its file name, once all are downloaded, checked and unpacked.

    Clip art is left out, with a warning, where there is no apt-get or dpkg-deb.

    Raises:
        DependencyError: a registry's client is missing or failed.
        DataError: a download differs from the one the data set was made with.
    """
    lock = json.loads((HERE / "LOCK.json").read_text())
    archives = {source: _npm_archive(source, cache / "archives") for source in NPM}
    clip_art = _debian_archive(CLIP_ART, cache / "archives")
    if clip_art:
        archives[CLIP_ART] = clip_art
    else:
        warn(f"{CLIP_ART.package} {CLIP_ART.version} is not available; the clip art is left out")
    found = {path.name: _checked(path, lock) for path in archives.values()}
    for source, path in archives.items():
        _unpack(path, cache / "unpacked" / source.style)
    return found


def _requirements() -> str:
    return str(HERE / "requirements.txt")


def _npm_archive(source: Source, folder: Path) -> Path:
    path = folder / f"{source.package.lstrip('@').replace('/', '-')}-{source.version}.tgz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        note(f"downloading {source.label}")
        _call(["npm", "pack", "--silent", "--pack-destination", str(folder), source.label])
    return path


def _debian_archive(source: Source, folder: Path) -> Path | None:
    if not any(folder.glob(f"{source.package}_*.deb")) and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        note(f"downloading {source.label}")
        command = ["apt-get", "download", "-q", f"{source.package}={source.version}"]
        subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return next(iter(folder.glob(f"{source.package}_*.deb")), None)


def _checked(path: Path, lock: dict[str, str]) -> str:
    found = sha256(path)
    if lock.get(path.name) != found:
        expected = lock.get(path.name, "no such file")
        raise DataError(f"{path}: SHA-256 {found}, but LOCK.json has {expected}; remove the file and fetch it again")
    return found


def _unpack(archive: Path, folder: Path) -> None:
    if folder.is_dir():
        return
    with whole_folder(folder) as partial:
        if archive.suffix == ".deb":
            _call(["dpkg-deb", "-x", str(archive), str(partial)])
        else:
            with tarfile.open(archive) as file:
                file.extractall(partial, filter="data")


def _call(command: list[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, check=True, text=True)
    except FileNotFoundError:
        raise DependencyError(f"{command[0]} is needed to build picto, and was not found; install it") from None
    except subprocess.CalledProcessError as error:
        raise DependencyError(f"`{' '.join(command)}` failed: {error.stderr.strip()[-500:]}") from None
