"""C, compiled for this processor on first use, in a second or two, and kept in `runtime.home()`."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import shutil
import subprocess
from pathlib import Path

from dalle3 import runtime
from dalle3.errors import OutputError
from dalle3.files import whole_file

FLAGS = (
    *("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    # what -ffast-math would allow, less its assumption that nothing is infinite and its change of the rounding mode
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"),
)


@functools.cache
def library(source: Path) -> ctypes.CDLL | None:
    """The compiled `source`; None where that is switched off or it cannot be built."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not runtime.native_allowed() or compiler is None or platform.system() != "Linux":
        return None
    path = runtime.home() / "native" / f"{source.stem}-{_build_name(source, compiler)}.so"
    try:
        if not path.exists():
            with whole_file(path) as partial:
                command = [compiler, *FLAGS, str(source), "-o", str(partial), "-lm"]
                subprocess.run(command, check=True, capture_output=True, timeout=120)
        return ctypes.CDLL(str(path))
    except (OSError, OutputError, subprocess.SubprocessError):
        return None


def _build_name(source: Path, compiler: str) -> str:
    """A name for what `source` and the headers beside it become under this compiler on this processor."""
    cpu = Path("/proc/cpuinfo")
    model = [line for line in cpu.read_text().splitlines() if line.startswith(("model name", "flags"))][:2]
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    parts = (*texts, " ".join(FLAGS), compiler, platform.machine(), *model)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
