"""A DALLE's training step beside dalle-pytorch 1.6.6's: same weights, same batch, same machine, one run.

    python benchmarks/training.py --peers PEERS/bin/python

PEERS is an environment that holds dalle-pytorch 1.6.6. Width 256, depth 8, 8 heads, batches of 8, 128 caption tokens of
10000 (dalle-pytorch's default), 256 of 8192 codes; a step is forward, backward, clipping and Adam. Prints Markdown. Run
it on a quiet machine with two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
STEP, PEER = HERE / "training_step.py", HERE / "peers" / "training.py"
DTYPES = ("float32", "bfloat16")
BATCH = 8
TOLERANCE = 1e-5  # between the losses in float32, relative

Result = dict[str, Any]


class Runs:
    """Runs steps of both sides, each in a process of its own, so that each has its own peak of memory."""

    def __init__(self, python: str, folder: Path, depth: int, steps: int) -> None:
        self.python, self.folder, self.depth, self.steps = python, folder, depth, steps

    def peer(self, case: str, threads: int) -> Result:
        """What a case of `peers/training.py` prints."""
        numbers = map(str, (self.depth, threads, self.steps))
        return _printed([self.python, str(PEER), case, str(self.folder), *numbers])

    def ours(self, dtype: str, threads: int, processes: int = 1) -> Result:
        """What `training_step.py` prints."""
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        start = [sys.executable, *(several if processes > 1 else [])]
        return _printed([*start, str(STEP), str(self.folder / "peer.pt"), dtype, str(threads), str(self.steps)])


def _printed(command: list[str]) -> Result:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def steps(runs: Runs) -> list[str]:
    """A row for each number format, two threads on both sides.

    Raises:
        SystemExit: the losses in float32 differ.
    """
    peers = {dtype: runs.peer(dtype, 2) for dtype in DTYPES}
    ours = {dtype: runs.ours(dtype, 2) for dtype in DTYPES}
    difference = _difference(peers["float32"]["losses"], ours["float32"]["losses"])
    if difference > TOLERANCE:
        raise SystemExit(f"the losses differ by {difference:.1e}: {peers['float32']['losses']}, {ours}")
    rows = [_row(peers[theirs], theirs, ours[mine], mine) for theirs, mine in _PAIRS]
    header = "| 1.6.6 | s a step | peak | ours | s a step | peak | times as fast |\n|---|---|---|---|---|---|---|"
    return [header, *rows, f"\nThe losses of the float32 steps agree to {difference:.1e}."]


_PAIRS = (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"))


def _difference(theirs: list[float], ours: list[float]) -> float:
    """The largest relative difference of the first two losses: a whole step lies between them."""
    return max(abs(a - b) / abs(a) for a, b in list(zip(theirs, ours, strict=True))[:2])


def _row(theirs: Result, their_dtype: str, ours: Result, dtype: str) -> str:
    a, b = (f"{side['seconds']:.2f} | {side['peak_bytes'] / 1e9:.2f} GB" for side in (theirs, ours))
    return f"| {their_dtype} | {a} | {dtype} | {b} | {theirs['seconds'] / ours['seconds']:.1f}x |"


def processes(runs: Runs) -> list[str]:
    """Lines on two processes of one core each (DDP) beside one of one core, and on the pictures a step takes in."""
    lines = []
    for dtype in DTYPES:
        alone, together = runs.ours(dtype, 1)["seconds"], runs.ours(dtype, 1, processes=2)["seconds"]
        lines.append(
            f"- {dtype}: one process {alone:.2f} s a step; two {together:.2f} s for twice the pictures, "
            f"{2 * alone / together:.2f} times as fast: {BATCH * 2 / together:.1f} pictures a second"
        )
    return lines


PARTS = {"steps": steps, "processes": processes}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", required=True, help="python of the peers' environment")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="of which the fastest counts, after one before")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(args.peers, Path(folder), args.depth, args.steps)
        runs.peer("write", 1)
        for part in args.only:
            print("\n".join(PARTS[part](runs)), flush=True)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
