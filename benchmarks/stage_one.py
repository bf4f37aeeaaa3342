"""Drawing codes beside the older systems: same weights, same machine, one run.

    python benchmarks/stage_one.py --peers PEERS/bin/python [--fork_source dalle-pytorch-1.1.4]

PEERS is an environment that holds dalle-pytorch 1.6.6 and min-dalle; `fork_source` a folder with dalle-pytorch 1.1.4,
the base of the DALL-3 fork. Prints a Markdown table. Run it on a quiet machine: two busy threads starve each other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dalle3.convert.dalle_pytorch import dalle_from_dalle_pytorch
from dalle3.decoding import Decoder
from dalle3.models.dalle import Dalle, DalleConfig
from dalle3.sampling import Sampling

SCRIPT = Path(__file__).parent / "peers" / "stage_one.py"
SAMPLING = Sampling(top_k=0.9)


class Peers:
    """Runs cases of `peers/stage_one.py` in the older systems' environment."""

    def __init__(self, python: str, fork_source: str | None, folder: Path, depth: int, threads: int) -> None:
        self.python, self.fork_source, self.folder = python, fork_source, folder
        self.depth, self.threads = depth, threads

    def __call__(self, case: str, *, fork: bool = False) -> dict:
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        if fork and self.fork_source:
            environment["PYTHONPATH"] = self.fork_source
        command = [self.python, str(SCRIPT), case, str(self.folder), str(self.depth), str(self.threads)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{case} failed in {self.python}:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def load(path: Path, version: str | None) -> tuple[Dalle, torch.Tensor]:
    """Our model on a peer's weights, and the caption (L,)."""
    file = torch.load(path, weights_only=True)
    config, state, _ = dalle_from_dalle_pytorch(file["weights"], file["hparams"], version=version)
    model = Dalle(config).eval()
    model.load_state_dict(state, strict=True)
    return model, file["caption"][0]


def ours(decoder: Decoder, caption: torch.Tensor, pictures: int, sampling: Sampling = SAMPLING) -> float:
    """Seconds for reading the caption and drawing `pictures`, the better of two runs after a first."""

    def run() -> None:
        prefix = decoder.read(caption, cond_scale=sampling.cond_scale)
        decoder.draw(prefix, sampling, seed=0, indices=range(pictures))

    run()
    return min(seconds(run) for _ in range(2))


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bandwidth() -> float:
    """Bytes a second that summing 512 MB reads, the best of ten."""
    data = torch.ones(1 << 27)
    return data.nbytes / min(seconds(data.sum) for _ in range(10))


def weight_bytes(model: Dalle) -> int:
    """What one code must read: every layer and the logits of codes."""
    layers = sum(p.nbytes for p in model.transformer.parameters())
    return layers + model.to_logits.weight[model.config.num_text_ids :].nbytes


def against_dalle_pytorch(peers: Peers) -> list[str]:
    """Rows for `generate_images` of the DALL-3 fork's base, and for 1.6.6's layers with their own caches.

    The `generate_images` of 1.6.6 recomputes everything for each code as well, so 1.1.4's stands for both.
    """
    peers("weights:old", fork=True)
    peers("weights:new")
    old = peers("generate_images:1", fork=True)["seconds"]
    cached = {pictures: peers(f"own_cache:{pictures}")["seconds"] for pictures in (1, 4)}
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        model, caption = load(peers.folder / "old.pt", None)
        decoder = Decoder(model.to(dtype))
        for pictures in (1, 16):
            mine = ours(decoder, caption, pictures) / pictures
            rows.append(row("1.1.4 `generate_images`, 1 picture", old, dtype, pictures, mine))
        model, caption = load(peers.folder / "new.pt", "1.6.6")
        decoder = Decoder(model.to(dtype))
        for pictures, theirs in cached.items():
            mine = ours(decoder, caption, pictures) / pictures
            rows.append(row(f"1.6.6 layers, own cache, {pictures} at once", theirs / pictures, dtype, pictures, mine))
    return rows


def against_min_dalle(peers: Peers) -> list[str]:
    """Rows for min-dalle's mini at guidance, against a DALLE of as many parameters, guided too."""
    torch.manual_seed(0)
    layers = max(peers.depth * 3 // 2, 1)  # 18 for the mini's 12 encoder and 12 decoder layers
    config = DalleConfig(
        num_text_tokens=50264, text_seq_len=64, num_image_tokens=16384, dim=1024, heads=16, depth=layers
    )
    decoder = Decoder(Dalle(config).eval())
    parameters = sum(p.numel() for p in decoder.model.parameters())
    caption, sampling = torch.arange(1, 65), Sampling(top_k=256, cond_scale=16.0)
    rows = []
    for pictures in (1, 9):
        peer = peers(f"min_dalle:{pictures}")
        sizes = f"{peer['parameters'] / 1e6:.0f} M; ours {parameters / 1e6:.0f} M"
        what = f"min-dalle mini ({sizes}), guided, {pictures} at once"
        mine = ours(decoder, caption, pictures, sampling) / pictures
        rows.append(row(what, peer["seconds"] / pictures, torch.float32, pictures, mine))
    return rows


def against_memory(peers: Peers) -> list[str]:
    """Lines on how near one picture comes to the time of reading the weights once a code."""
    peers("weights:new")
    model, caption = load(peers.folder / "new.pt", "1.6.6")
    speed, lines = bandwidth(), []
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        token = seconds_per_code(Decoder(model), caption)
        least = weight_bytes(model) / speed
        lines.append(
            f"- {name(dtype)}: {token * 1e3:.2f} ms a code; reading {weight_bytes(model) / 1e6:.0f} MB of weights at "
            f"{speed / 1e9:.1f} GB/s takes {least * 1e3:.2f} ms: {token / least:.2f}x that"
        )
    return lines


def seconds_per_code(decoder: Decoder, caption: torch.Tensor) -> float:
    """Time of one code of one picture, the best of three pictures, the caption's reading left out."""
    prefix = decoder.read(caption)
    taken = min(seconds(lambda: decoder.draw(prefix, SAMPLING, seed=0, indices=[0])) for _ in range(3))
    return taken / decoder.config.image_seq_len


def row(what: str, theirs: float, dtype: torch.dtype, pictures: int, mine: float) -> str:
    """A line of the table: seconds a picture on both sides, and their ratio."""
    return f"| {what} | {theirs:.2f} | {name(dtype)}, {pictures} at once | {mine:.3f} | {theirs / mine:.1f}x |"


def name(dtype: torch.dtype) -> str:
    """The number format as flags spell it."""
    return str(dtype).removeprefix("torch.")


PARTS = {"dalle-pytorch": against_dalle_pytorch, "min-dalle": against_min_dalle, "memory": against_memory}


def report(peers: Peers, parts: list[str]) -> None:
    """Prints the rows of `parts`, Markdown, each part as soon as it is measured."""
    print("| peer | s a picture | ours | s a picture | ratio |\n|---|---|---|---|---|")
    for part in parts:
        print("\n".join(PARTS[part](peers)), flush=True)
    print(f"{platform.processor() or platform.machine()}, {peers.threads} threads, torch {torch.__version__}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", required=True, help="python of the peers' environment")
    parser.add_argument("--fork_source", help="folder of dalle-pytorch 1.1.4")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(args.peers, args.fork_source, Path(folder), args.depth, args.threads)
        report(peers, args.only)


if __name__ == "__main__":
    main()
