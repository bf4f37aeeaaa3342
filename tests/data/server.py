"""A web server on this machine that breaks off, refuses and continues as it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast


class Unreliable(ThreadingHTTPServer):
    """Serves the files of a folder.

    Attributes:
        cuts: for the next answers, the bytes after which each breaks off.
        failures: for the next requests, the status each is refused with.
        continues: whether it answers ranges.
        asked: the path and the range of every request.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.continues = folder, True
        self.cuts: list[int] = []
        self.failures: list[int] = []
        self.asked: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        """Its http address."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, span = cast(Unreliable, self.server), self.headers.get("Range")
        server.asked.append((self.path, span))
        file = server.folder / self.path[1:]
        if server.failures or not file.is_file():
            return self.send_error(server.failures.pop(0) if server.failures else 404)
        content = file.read_bytes()
        start = int(span[len("bytes=") : -1]) if span and server.continues else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", '"one"')
        self.end_headers()
        part = content[start:]
        self.wfile.write(part[: server.cuts.pop(0)] if server.cuts else part)
        return None

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[Unreliable]:
    """Serves `folder` within the block."""
    with Unreliable(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
