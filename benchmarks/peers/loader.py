"""dalle-pytorch's loader, in its own environment: `loader.py FOLDER IMAGE_SIZE BATCH NUM_WORKERS SECONDS`.

Prints the pictures that arrive in a second. Captions are turned into ids, as its data set does within the loader.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import cycle, islice

import torch
from dalle_pytorch.loader import TextImageDataset
from dalle_pytorch.tokenizer import tokenizer
from torch.utils.data import DataLoader


def main() -> None:
    """Prints the speed as JSON."""
    folder, seconds = sys.argv[1], float(sys.argv[5])
    image_size, batch, num_workers = map(int, sys.argv[2:5])
    torch.set_num_threads(1)
    data = TextImageDataset(folder, image_size=image_size, tokenizer=tokenizer, shuffle=True)
    loader = DataLoader(data, batch_size=batch, num_workers=num_workers, persistent_workers=num_workers > 0)
    stream = cycle_of(loader)
    list(islice(stream, 8 + 4 * num_workers))
    start, pictures = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        pictures += len(next(stream)[0])
    print(json.dumps(pictures / (time.perf_counter() - start)))


def cycle_of(loader: DataLoader):
    """The batches of one epoch after another."""
    for _ in cycle([None]):
        yield from loader


if __name__ == "__main__":
    main()
