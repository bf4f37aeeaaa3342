"""The diffusion decoder's network beside guided-diffusion: same weights, same machine, one run.

    python benchmarks/stage_two.py --peers PEERS/bin/python

PEERS is an environment that holds guided-diffusion-sdk and OpenAI's clip. Prints a Markdown table: one pass of the 256
layout, and one step guided by a ViT-B/16. Run it on a quiet machine; it needs 12 GB of memory and 3 GB of disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dalle3 import compiled
from dalle3.models.clip import Clip, from_openai
from dalle3.runtime import generator, keep_freed_memory
from diffusion import winograd
from diffusion.guidance import Cutouts, PromptLoss, exact_gradient, fast_gradient
from diffusion.presets import find_preset
from diffusion.process import Denoiser, Process
from diffusion.samplers import ddpm, finish
from diffusion.unet import UNet
from diffusion.weights import load

SCRIPT = Path(__file__).parent / "peers" / "stage_two.py"
STEPS, AT = "25", 12  # the chain, and the step of it that is timed, as in the peer's script


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured."""

    channels: int
    size: int
    cutn: int  # theirs, and of our exact form; the fast form takes half as many, as decode.py does
    threads: int


def peer(python: str, case: str, folder: Path, sizes: Sizes) -> dict:
    """What a case of `peers/stage_two.py` prints in the peers' environment."""
    numbers = map(str, (sizes.channels, sizes.size, sizes.cutn, sizes.threads))
    done = subprocess.run(
        [python, str(SCRIPT), case, str(folder), *numbers], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{case} failed in {python}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def best(run: Callable[[], object], times: int = 2) -> float:
    """Seconds of the fastest of `times` runs after a first."""
    run()
    taken = []
    for _ in range(times):
        before = time.perf_counter()
        run()
        taken.append(time.perf_counter() - before)
    return min(taken)


def ours(folder: Path, channels: int, dtype: torch.dtype) -> UNet:
    """Our network on the peer's weights."""
    config = dataclasses.replace(find_preset("openai-256-uncond").unet, num_channels=channels)
    state = torch.load(folder / "unet.pt", weights_only=True, mmap=True)
    network = load(config, state, kind=UNet).eval().requires_grad_(False).cast(dtype)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def one_pass(network: UNet, case: dict[str, Tensor]) -> tuple[float, float]:
    """Seconds of a pass, and its root mean square error relative to the peer's answer."""
    x = case["x"].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        error = (network(x, case["t"]) - case["output"]).square().mean().sqrt() / case["output"].square().mean().sqrt()
        return best(lambda: network(x, case["t"])), float(error)


def guided(network: UNet, clip: Clip, case: dict[str, Tensor], cutn: int, form: str) -> float:
    """Seconds of one ancestral step, guided exactly or fast, and never anything but that one step."""
    process = Process(find_preset("dalle3-256").process, STEPS)
    loss = PromptLoss(
        process=process,
        cutouts=Cutouts(cutn=cutn, cut_size=clip.image_size, rngs=[generator(0, "cutouts")]),
        embed_image=clip.encode_image,
        targets=torch.nn.functional.normalize(torch.randn(1, clip.config.embed_dim), dim=-1),
        weights=torch.ones(1),
    )
    plain = process.denoiser(network)
    denoise = exact_gradient(plain, loss) if form == "exact" else fast_gradient(plain, loss, process=process)
    single = _one_step(process)
    x = case["x"].contiguous(memory_format=torch.channels_last)
    return best(lambda: finish(ddpm(_at(denoise), x, process=single, noise=torch.randn_like)))


def read_clip(folder: Path) -> Clip:
    """Our CLIP on the peer's weights."""
    config, state = from_openai(torch.load(folder / "clip.pt", weights_only=True))
    clip = Clip(config).eval().requires_grad_(False)
    clip.load_state_dict(state, strict=True)
    return clip


def row(what: str, theirs: float, name: str, taken: float, error: str) -> str:
    """A row of the table."""
    return f"| {what} | {theirs:.2f} | {name} | {taken:.2f} | {theirs / taken:.2f}x | {error} |"


def _one_step(process: Process) -> Process:
    return Process(process.config, (process.timestep_map[AT],))


def _at(denoise: Denoiser) -> Denoiser:
    return lambda x, t: denoise(x, AT)


def report(python: str, sizes: Sizes, folder: Path, only: str | None) -> str:
    """The table, Markdown: all of it, or the rows of one case."""
    written = peer(python, "write", folder, sizes)
    cases = [case for case in ("pass", "guided") if only in (None, case)]
    theirs = {case: peer(python, case, folder, sizes)["seconds"] for case in cases}
    case = torch.load(folder / "case.pt", weights_only=True)
    rows = ["| what | guided-diffusion, s | ours | s | ratio | error |", "|---|---|---|---|---|---|"]
    for dtype in (torch.float32, torch.bfloat16):
        network, name = ours(folder, sizes.channels, dtype), str(dtype).removeprefix("torch.")
        if "pass" in cases:
            taken, error = one_pass(network, case)
            rows.append(row("one pass", theirs["pass"], name, taken, f"{error:.1e}"))
        if "guided" in cases:
            clip = read_clip(folder).to(dtype)
            for form in ("exact", "fast"):
                cutn = sizes.cutn if form == "exact" else sizes.cutn // 2
                taken = guided(network, clip, case, cutn, form)
                rows.append(row("guided step", theirs["guided"], f"{name}, {form}, {cutn} cutouts", taken, ""))
    where = f"{platform.processor() or platform.machine()}, {sizes.threads} threads, torch {torch.__version__}"
    parameters = f"{written['parameters'] / 1e6:.0f} M parameters, {sizes.size} px, {sizes.cutn} cutouts"
    return "\n".join([*rows, "", f"{parameters}; {where} (theirs: torch {written['torch']})"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", required=True, help="python of the peers' environment")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--cutn", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("pass", "guided"), help="only these rows (default: all)")
    args = parser.parse_args()
    sizes = Sizes(channels=args.channels, size=args.size, cutn=args.cutn, threads=args.threads)
    torch.set_num_threads(sizes.threads)
    keep_freed_memory()  # as decode.py does, and so
    winograd.use(compiled.library)
    with tempfile.TemporaryDirectory() as folder:
        print(report(args.peers, sizes, Path(folder), args.only))


if __name__ == "__main__":
    main()
