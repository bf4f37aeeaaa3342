"""dalle-pytorch 1.6.6's own training step. Runs in its environment, never in ours.

    python training.py CASE FOLDER DEPTH THREADS STEPS

CASE is "write" (random weights and a batch, to FOLDER), "float32", or "bfloat16", the same step under torch.autocast,
which their script does not offer on a CPU. Each prints one JSON line.
"""

from __future__ import annotations

import json
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

BATCH, NUM_TEXT, TEXT_LEN, NUM_CODES, GRID = 8, 10000, 128, 8192, 16


def make_dalle(depth: int):
    from dalle_pytorch import DALLE, DiscreteVAE

    torch.manual_seed(0)
    vae = DiscreteVAE(image_size=128, num_layers=3, num_tokens=NUM_CODES, codebook_dim=64, hidden_dim=8)
    sizes = {"num_text_tokens": NUM_TEXT, "text_seq_len": TEXT_LEN, "dim": 256, "depth": depth, "heads": 8}
    return DALLE(vae=vae, **sizes), sizes


def make_batch() -> dict[str, torch.Tensor]:
    """Captions of full length with some blanks behind, and codes."""
    rng = torch.Generator().manual_seed(1)
    text = torch.randint(1, NUM_TEXT, (BATCH, TEXT_LEN), generator=rng)
    text[BATCH // 2 :, TEXT_LEN // 2 :] = 0
    return {"text": text, "codes": torch.randint(0, NUM_CODES, (BATCH, GRID * GRID), generator=rng)}


def write(folder: Path, depth: int) -> dict:
    dalle, sizes = make_dalle(depth)
    weights = {key: value for key, value in dalle.state_dict().items() if not key.startswith("vae.")}
    torch.save({"weights": weights, "hparams": sizes, "batch": make_batch()}, folder / "peer.pt")
    return {"parameters": sum(value.numel() for value in weights.values())}


def train(depth: int, dtype: torch.dtype, steps: int) -> dict:
    """Forward, backward, clipping and Adam, as in its train_dalle.py."""
    dalle, _ = make_dalle(depth)
    parameters = [parameter for parameter in dalle.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=3e-4)
    batch, losses, taken = make_batch(), [], []
    for _ in range(steps + 1):
        before = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = dalle(batch["text"], batch["codes"], return_loss=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        taken.append(time.perf_counter() - before)
    return {"seconds": min(taken[1:]), "losses": losses, "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """The most memory this process has held."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def main() -> None:
    case, folder, *numbers = sys.argv[1:]
    depth, threads, steps = map(int, numbers)
    torch.set_num_threads(threads)
    result = write(Path(folder), depth) if case == "write" else train(depth, getattr(torch, case), steps)
    print(json.dumps({**result, "peer": version("dalle-pytorch")}))


if __name__ == "__main__":
    main()
