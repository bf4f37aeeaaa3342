"""Pictures a second that reach the training loop: `python benchmarks/loader.py [--peers PEERS/bin/python]`.

From a folder and from tars, of pictures as data sets have them, cut at random to 128 pixels, by so many processes that
read ahead. PEERS is an environment with dalle-pytorch 1.6.6, whose loader is then measured on the same folders.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import tarfile
import tempfile
import time
from itertools import count, islice
from pathlib import Path

import torch
from PIL import Image

from dalle3.data.loader import Stream, batches
from dalle3.data.open import open_pictures
from dalle3.data.transforms import Crop, CropConfig

SCRIPT = Path(__file__).parent / "peers" / "loader.py"
PICTURES, BATCH, IMAGE_SIZE = 64, 8, 128
KINDS = {"WebP, 256 px": ("webp", 256, 92), "JPEG, 256 px": ("jpg", 256, 90), "JPEG, 1024 px": ("jpg", 1024, 90)}


def photograph(number: int, side: int) -> Image.Image:
    """A picture with detail at every scale, as a photograph has, (side, side)."""
    rng = torch.Generator().manual_seed(number)
    picture = torch.zeros(1, 3, side, side)
    for scale in (4, 16, 64, side // 2):
        noise = torch.randn(1, 3, scale, scale, generator=rng) / scale**0.5
        picture += torch.nn.functional.interpolate(noise, size=side, mode="bicubic")
    pixels = (picture[0] * 120 + 128).clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def material(folder: Path, suffix: str, side: int, quality: int) -> Path:
    """A folder `pictures` and a tar `pictures.tar` of the same captioned pictures."""
    (folder / "pictures").mkdir(parents=True)
    with tarfile.open(folder / "pictures.tar", "w") as tar:
        for number in range(PICTURES):
            file = io.BytesIO()
            photograph(number % 16, side).save(file, {"jpg": "JPEG", "webp": "WEBP"}[suffix], quality=quality)
            for name, content in ((f"{number:05d}.{suffix}", file.getvalue()), (f"{number:05d}.txt", b"a picture")):
                (folder / "pictures" / name).write_bytes(content)
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder


def pictures_per_second(stream: Stream, *, batch_size: int = BATCH, num_workers: int, seconds: float) -> float:
    """How many examples of a stream arrive in a second, after the first batches."""
    loader = batches(stream, batch_size, num_workers=num_workers)
    list(islice(loader, 8 + 4 * num_workers))  # the processes have started and read ahead
    start = time.perf_counter()
    for number in count(1):
        next(loader)
        if (elapsed := time.perf_counter() - start) > seconds:
            return number * batch_size / elapsed
    raise AssertionError


def ours(source: Path, num_workers: int, seconds: float) -> float:
    """Pictures a second of our loader."""
    stream = Stream(open_pictures(str(source)), Crop(IMAGE_SIZE, CropConfig()), seed=0)
    return pictures_per_second(stream, num_workers=num_workers, seconds=seconds)


def peers(python: str, source: Path, num_workers: int, seconds: float) -> float:
    """Pictures a second of dalle-pytorch's loader."""
    command = [python, str(SCRIPT), str(source), *map(str, (IMAGE_SIZE, BATCH, num_workers, seconds))]
    done = subprocess.run(command, env={**os.environ, "PYTHONWARNINGS": "ignore"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the loader failed in {python}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="the python of the older system's environment")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    args = parser.parse_args()
    torch.set_num_threads(1)
    columns = ["folder", "tar", *(["dalle-pytorch, folder"] if args.peers else [])]
    print(f"| pictures | num_workers | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    with tempfile.TemporaryDirectory() as place:
        for number, (kind, made) in enumerate(KINDS.items()):
            folder = material(Path(place) / str(number), *made)
            for num_workers in (0, 1, 2):
                found = [ours(folder / name, num_workers, args.seconds) for name in ("pictures", "pictures.tar")]
                if args.peers:
                    found.append(peers(args.peers, folder / "pictures", num_workers, args.seconds))
                print(f"| {kind} | {num_workers} | {' | '.join(f'{speed:.0f}' for speed in found)} |", flush=True)


if __name__ == "__main__":
    main()
