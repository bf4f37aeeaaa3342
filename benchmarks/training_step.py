"""Our training step on the weights and the batch of a file: one JSON line. `training.py` starts it.

[torchrun --nproc-per-node 2] python benchmarks/training_step.py FILE DTYPE THREADS STEPS
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import torch

from dalle3.convert.dalle_pytorch import dalle_from_dalle_pytorch
from dalle3.models.dalle import Dalle
from dalle3.runtime import keep_freed_memory
from dalle3.train.launch import LaunchConfig, meet
from dalle3.train.loop import LoopConfig
from dalle3.train.optim import OptimConfig, make_optimizer
from dalle3.train.tasks.dalle import DalleObjective


def main() -> None:
    """Measures the steps that the command line asks for."""
    path, dtype, threads, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    keep_freed_memory()  # as the loop does
    optim = OptimConfig()
    parallel = meet(LaunchConfig(), LoopConfig(dtype=dtype), optim, device=torch.device("cpu"))  # type: ignore[arg-type]
    objective, batch = load(path)
    parallel.wrap(objective, make_optimizer(objective, optim))
    losses, taken = [], []
    for _ in range(steps + 1):
        before = time.perf_counter()
        loss, _ = parallel.forward(batch)
        parallel.backward(loss)
        parallel.step(learning_rate=optim.learning_rate, clip=optim.clip_grad_norm)
        losses.append(loss.item())
        taken.append(time.perf_counter() - before)
    if parallel.rank == 0:
        print(json.dumps({"seconds": min(taken[1:]), "losses": losses, "peak_bytes": peak_bytes()}), flush=True)
    parallel.finish()


def load(path: Path) -> tuple[DalleObjective, dict[str, torch.Tensor]]:
    """The objective on a peer's weights, and the batch beside them."""
    file = torch.load(path, weights_only=True)
    config, state, _ = dalle_from_dalle_pytorch(file["weights"], file["hparams"], version="1.6.6")
    model = Dalle(config)
    model.load_state_dict(state, strict=True)
    return DalleObjective(model), file["batch"]


def peak_bytes() -> int:
    """The most memory this process has held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "Linux tells it"
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
