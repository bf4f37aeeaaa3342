"""Tars behind http addresses: fetched once, whole, into a folder of this machine.

Samples are read in an order that jumps through all tars, so each must lie at hand; a tar that was fetched is
not asked for again, and training then needs no network.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from dalle3.errors import DataError
from dalle3.files import locked, reported, whole_file
from dalle3.log import note, warn

ADDRESSES = ("http://", "https://")
TIMEOUT = 30  # seconds without a byte
TRIES = 5  # in a row that bring nothing
PIECE = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # what a server answers that may soon answer better


class _BrokenOffError(Exception):
    """An attempt that failed and may be made again."""


@dataclass
class _State:
    """What is known of a file on its way: the bytes that are here, and the server's mark of its version."""

    size: int = 0
    version: str = ""


def fetch_all(urls: Sequence[str], folder: Path, *, pause: float = 1.0) -> list[Path]:
    """The files behind `urls`, below `folder`; those that are not there yet are fetched.

    Args:
        pause: seconds before the second attempt; doubled before each one after that.
    Raises:
        DataError: an address is wrong, or the connection fails again and again.
        OutputError: the disk is full, or the folder cannot be written.
    """
    paths = [place_of(url, folder) for url in urls]
    for url, path in zip(urls, paths, strict=True):
        _fetch(url, path, pause)
    return paths


def place_of(url: str, folder: Path) -> Path:
    """Where the file behind `url` is kept: its own name, in a folder that stands for the address."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return folder / digest / (Path(unquote(urlsplit(url).path)).name or "tar")


def _fetch(url: str, path: Path, pause: float) -> None:
    if path.exists():
        return
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):  # of several processes one fetches
        if not path.exists():
            note(f"fetching {url}")
            with whole_file(path) as partial, partial.open("wb") as file:
                _persist(url, file, pause)


def _persist(url: str, file: BinaryIO, pause: float) -> None:
    """Fetches on from where the connection broke off until the file is whole."""
    state, failures = _State(), 0
    while True:
        before = state.size
        try:
            return _attempt(url, file, state)
        except _BrokenOffError as error:
            failures = 1 if state.size > before else failures + 1
            if failures == TRIES:
                raise DataError(
                    f"{url} cannot be fetched: {error}; {TRIES} attempts failed: check the address and the network"
                ) from None
            warn(f"{url}: {error}; trying again from byte {state.size}")
            time.sleep(pause * 2 ** (failures - 1))


def _attempt(url: str, file: BinaryIO, state: _State) -> None:
    continued = {"Range": f"bytes={state.size}-", "If-Range": state.version} if state.size and state.version else {}
    try:
        answer = urlopen(Request(url, headers=continued), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:  # the part that is here is not of this file
            state.size = 0
        elif error.code not in _PASSING:
            raise _wrong(url, f"the server says {error.code} {error.reason}") from None
        raise _BrokenOffError(f"the server says {error.code} {error.reason}") from None
    except (InvalidURL, ValueError) as error:
        raise _wrong(url, str(error)) from None
    except (HTTPException, OSError) as error:
        raise _broken_off(error) from None
    with answer:
        _receive(answer, file, state)


def _receive(answer: HTTPResponse, file: BinaryIO, state: _State) -> None:
    """Adds what comes to the file, from its beginning unless the server continues it.

    Raises:
        _BrokenOffError: fewer bytes came than the server announced.
    """
    if answer.status != 206:
        state.size = 0
    state.version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    announced = answer.headers.get("Content-Length")
    whole = None if announced is None else state.size + int(announced)
    file.seek(state.size)
    file.truncate()
    for piece in _pieces(answer):
        file.write(piece)
        state.size += len(piece)
    if whole is not None and state.size < whole:
        raise _BrokenOffError(f"the connection broke off after {state.size} of {whole} bytes")


def _pieces(answer: HTTPResponse) -> Iterator[bytes]:
    """What comes; only errors of the network are caught, not those of the disk it is written to."""
    try:
        while piece := answer.read(PIECE):
            yield piece
    except (HTTPException, OSError) as error:
        raise _broken_off(error) from None


def _broken_off(error: Exception) -> _BrokenOffError:
    reason = getattr(error, "reason", None) or error
    return _BrokenOffError(getattr(reason, "strerror", None) or str(reason) or type(reason).__name__)


def _wrong(url: str, reason: str) -> DataError:
    return DataError(f"{url} cannot be fetched: {reason}; check the address and the braces of the pattern")
