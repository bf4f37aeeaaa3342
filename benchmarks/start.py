"""Time from the start of the process to the first code of the default model: `python benchmarks/start.py`.

Prints each of several starts; the first may read files that are not in memory yet.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

CHILD = """
import time
from dalle3 import load
from dalle3.decoding import Decoder
from dalle3.sampling import Sampling
from dalle3.tokenizers.base import tokenize

def first(done, of):
    print(time.time(), flush=True)
    raise SystemExit

model = load(device="cpu")
text = tokenize(model.tokenizer, [model.recommended.example or "a red circle"], model.dalle.config.text_seq_len)[0]
model.decoder.draw(model.decoder.read(text), Sampling(top_p=0.9), seed=0, indices=[0], on_token=first)
"""


def main() -> None:
    """Prints the seconds of four starts."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(4):
            start = time.time()
            done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, cwd=folder, check=True)
            print(f"{float(done.stdout) - start:.2f} s to the first code")


if __name__ == "__main__":
    main()
