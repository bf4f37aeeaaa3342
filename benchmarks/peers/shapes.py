"""dalle-pytorch 1.6.6 on the same scenes for the same time. Runs in its environment, never in ours.

    PEERS/bin/python benchmarks/peers/shapes.py VAE_TAR DALLE_TAR PROMPTS OUT --vae_minutes 5 --dalle_minutes 9

The tars hold the training scenes, PROMPTS a file `one.txt` and others with a prompt in each line. Its own classes learn
with the losses, the optimizer and the schedules of its train_vae.py and train_dalle.py; what is chosen here are sizes,
batches and learning rates. OUT/one/0000.png and so on are what it draws, for `python -m recipes.shapes.evaluate`.

The captions are single words to it, as they are to our tokenizer. Pictures are decoded before the clock starts, and the
clock is the processor's time over the threads, so that what else runs on the machine costs it nothing.
"""

from __future__ import annotations

import argparse
import io
import math
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from dalle_pytorch import DALLE, DiscreteVAE
from PIL import Image
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam
from torch.optim.lr_scheduler import ExponentialLR

TEXT_LENGTH = 12
TEMPERATURE, TEMPERATURE_MIN, ANNEAL_RATE, LR_DECAY, CHANGE_EVERY = 1.0, 0.5, 1e-6, 0.98, 100  # train_vae.py
CLIP_GRAD_NORM = 0.5  # train_dalle.py


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vae_tar", type=Path)
    parser.add_argument("dalle_tar", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vae_minutes", type=float, default=5)
    parser.add_argument("--dalle_minutes", type=float, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--num_tokens", type=int, default=1024)
    parser.add_argument("--hidden_dim", type=int, default=64)
    parser.add_argument("--codebook_dim", type=int, default=64)
    parser.add_argument("--num_resnet_blocks", type=int, default=1)
    parser.add_argument("--vae_batch_size", type=int, default=32)
    parser.add_argument("--vae_learning_rate", type=float, default=1e-3, help="train_vae.py's")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dim_head", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="train_dalle.py's is 3e-4")
    parser.add_argument("--filter_thres", type=float, default=0.9)
    parser.add_argument("--temperature", type=float, default=1.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    vae = train_vae(read(args.vae_tar)[0], args)
    pictures, captions = read(args.dalle_tar)
    save(grid(vae, pictures), args.out / "reconstructed.png")
    words = {word: number for number, word in enumerate(sorted({w for c in captions for w in c.split()}), 1)}
    dalle = train_dalle(vae, pictures, to_ids(captions, words), len(words) + 1, args)
    torch.save({"dalle": dalle.state_dict(), "words": words}, args.out / "dalle.pt")
    for path in sorted(args.prompts.glob("*.txt")):
        drawn = draw(dalle, to_ids(path.read_text(encoding="utf-8").splitlines(), words), args)
        for number, picture in enumerate(drawn):
            save(picture, args.out / path.stem / f"{number:04d}.png")


def read(tar: Path) -> tuple[Tensor, list[str]]:
    """All pictures, uint8 (N, 3, H, W), and their captions."""
    pictures, captions = [], []
    with tarfile.open(tar) as file:
        for member in file:
            content = file.extractfile(member).read()
            if member.name.endswith(".png"):
                pictures.append(torch.from_numpy(np.array(Image.open(io.BytesIO(content)))).permute(2, 0, 1))
            elif member.name.endswith(".txt"):
                captions.append(content.decode())
    return torch.stack(pictures), captions


def to_ids(captions: list[str], words: dict[str, int]) -> Tensor:
    """(N, L), 0 where blank."""
    ids = torch.zeros(len(captions), TEXT_LENGTH, dtype=torch.long)
    for row, caption in zip(ids, captions, strict=True):
        known = [words[word] for word in caption.split()]
        row[: len(known)] = torch.tensor(known)
    return ids


def train_vae(pictures: Tensor, args: argparse.Namespace) -> DiscreteVAE:
    vae = DiscreteVAE(
        image_size=pictures.shape[-1],
        num_layers=3,
        num_tokens=args.num_tokens,
        codebook_dim=args.codebook_dim,
        hidden_dim=args.hidden_dim,
        num_resnet_blocks=args.num_resnet_blocks,
    )
    optimizer = Adam(vae.parameters(), lr=args.vae_learning_rate)
    schedule, temperature = ExponentialLR(optimizer, gamma=LR_DECAY), TEMPERATURE
    began, step = time.process_time(), 0
    while time.process_time() - began < args.vae_minutes * 60 * args.threads:
        batch = pictures[torch.randint(len(pictures), (args.vae_batch_size,))].float() / 255
        loss = vae(batch, return_loss=True, temp=temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % CHANGE_EVERY == 0:
            temperature = max(temperature * math.exp(-ANNEAL_RATE * step), TEMPERATURE_MIN)
            schedule.step()
            print(f"vae step {step}  loss {loss.item():.4f}", flush=True)
        step += 1
    print(f"vae: {step} steps of {args.vae_batch_size}")
    return vae.eval()


def train_dalle(vae: DiscreteVAE, pictures: Tensor, ids: Tensor, num_words: int, args: argparse.Namespace) -> DALLE:
    dalle = DALLE(
        vae=vae,
        num_text_tokens=num_words,
        text_seq_len=TEXT_LENGTH,
        dim=args.dim,
        depth=args.depth,
        heads=args.heads,
        dim_head=args.dim_head,
    )
    optimizer = Adam([p for p in dalle.parameters() if p.requires_grad], lr=args.learning_rate)
    began, step = time.process_time(), 0
    while time.process_time() - began < args.dalle_minutes * 60 * args.threads:
        chosen = torch.randint(len(pictures), (args.batch_size,))
        loss = dalle(ids[chosen], pictures[chosen].float() / 255, return_loss=True)
        loss.backward()
        clip_grad_norm_(dalle.parameters(), CLIP_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if step % CHANGE_EVERY == 0:
            print(f"dalle step {step}  loss {loss.item():.4f}", flush=True)
        step += 1
    print(f"dalle: {step} steps of {args.batch_size}")
    return dalle.eval()


def draw(dalle: DALLE, ids: Tensor, args: argparse.Namespace) -> Tensor:
    """Pictures as its own generate_images draws them, uint8 (N, 3, H, W)."""
    batches = ids.split(25)
    drawn = [
        dalle.generate_images(batch, filter_thres=args.filter_thres, temperature=args.temperature) for batch in batches
    ]
    return to_bytes(torch.cat(drawn))


@torch.no_grad()
def grid(vae: DiscreteVAE, pictures: Tensor) -> Tensor:
    """Eight pictures above what its codes keep of them."""
    codes = vae.get_codebook_indices(pictures[:8].float() / 255)
    rows = torch.stack([pictures[:8], to_bytes(vae.decode(codes))])
    return rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def to_bytes(normalised: Tensor) -> Tensor:
    """Its pictures leave the network normalised to [-1, 1]."""
    return ((normalised * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def save(picture: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)


if __name__ == "__main__":
    main()
