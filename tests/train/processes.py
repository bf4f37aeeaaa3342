"""The real commands on several processes: what a user types, in subprocesses, on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from dalle3.checkpoint import save_checkpoint
from dalle3.data.folder import CaptionedFolder
from recipes.shapes.source import Scenes
from tests.tiny import codec

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "PYTHONPATH": str(ROOT),
    "KINETO_LOG_LEVEL": "99",
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
SCRIPT = str(ROOT / "train_dalle.py")
MODEL = {"text_seq_len": 32, "dim": 16, "depth": 1, "heads": 1, "dim_head": 16, "train_bpe": 128}
LOOP = {"log_every_n_steps": 1, "sample_every_n_steps": 0, "device": "cpu", "random_resize_crop_lower_ratio": 0.9}
SWITCHES = ("rotary_emb", "shift_tokens", "deepspeed")
TIMINGS = ("samples_per_second", "minutes_left", "tokens_per_second", "model_flops_utilisation")


def material(folder: Path) -> dict[str, Path]:
    """Twelve captioned pictures and an image tokenizer, as flags."""
    scenes, pictures = Scenes(12, size=16, kind="one"), folder / "pictures"
    pictures.mkdir()
    for index in range(len(scenes)):
        sample = scenes.load(index)
        sample.content.save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text("\n".join(sample.captions))
    assert len(CaptionedFolder(pictures)) == 12
    save_checkpoint(codec(), folder / "vae")
    return {"image_text_folder": pictures, "vae_path": folder / "vae"}


def command(processes: int, *switches: str, **flags: object) -> list[str]:
    """`train_dalle.py` under plain python, or under torchrun where there are several processes."""
    given = [str(part) for name, value in {**MODEL, **LOOP, **flags}.items() for part in (f"--{name}", value)]
    return [
        sys.executable,
        *([*TORCHRUN, str(processes)] if processes > 1 else []),
        SCRIPT,
        *given,
        *(f"--{name}" for name in switches),
    ]


def start(line: list[str]) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        line, env={**environment, **ENVIRONMENT}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> str:
    """What the process said on standard error; it must have ended well."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out[-3000:] + err[-12000:]
    return err


def losses(run: Path) -> list[dict[str, float]]:
    """The metrics of each step, without those of time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]
