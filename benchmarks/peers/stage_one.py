"""The older systems drawing codes, each in its own way. Runs in their environment, never in ours.

    python stage_one.py CASE FOLDER DEPTH THREADS

CASE is "weights-NAME" to write random weights and a caption to FOLDER, or a measurement; both print one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

NUM_TEXT, TEXT_LEN, NUM_CODES, GRID = 10000, 256, 8192, 16
TOP_K = 0.9


def make_dalle(depth: int):
    from dalle_pytorch import DALLE, DiscreteVAE

    torch.manual_seed(0)
    vae = DiscreteVAE(image_size=128, num_layers=3, num_tokens=NUM_CODES, codebook_dim=64, hidden_dim=8)
    sizes = {"num_text_tokens": NUM_TEXT, "text_seq_len": TEXT_LEN, "dim": 512, "depth": depth, "heads": 8}
    return DALLE(vae=vae, **sizes).eval(), sizes


def make_caption() -> torch.Tensor:
    return torch.randint(1, NUM_TEXT, (1, TEXT_LEN), generator=torch.Generator().manual_seed(1))


def write_weights(folder: Path, name: str, depth: int) -> dict:
    dalle, sizes = make_dalle(depth)
    weights = {key: value for key, value in dalle.state_dict().items() if not key.startswith("vae.")}
    torch.save({"weights": weights, "hparams": sizes, "caption": make_caption()}, folder / f"{name}.pt")
    return {"parameters": sum(value.numel() for value in weights.values())}


def seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def generate_images(depth: int, batch: int) -> dict:
    """`generate_images` as released: every code recomputes the whole sequence."""
    dalle, _ = make_dalle(depth)
    text = make_caption().repeat(batch, 1)
    return {"seconds": seconds(lambda: dalle.generate_images(text, filter_thres=TOP_K))}


@torch.no_grad()
def own_cache(depth: int, batch: int) -> dict:
    """dalle-pytorch's own layer caches, driven as they are meant to be."""
    from dalle_pytorch.dalle_pytorch import gumbel_sample, top_k

    dalle, _ = make_dalle(depth)
    text = make_caption().repeat(batch, 1)

    def run() -> None:
        cache, codes = {}, torch.empty(batch, 0, dtype=torch.long)
        for _ in range(GRID * GRID):
            logits = dalle(text, codes, cache=cache)[:, -1]
            drawn = gumbel_sample(top_k(logits, thres=TOP_K)) - dalle.num_text_tokens
            codes = torch.cat([codes, drawn[:, None]], dim=1)

    return {"seconds": seconds(run)}


def min_dalle_loop(layers: int, batch: int) -> dict:
    """min-dalle's own loop, mini size, with its guidance."""
    from min_dalle import MinDalle
    from min_dalle.models import DalleBartDecoder, DalleBartEncoder

    threads = torch.get_num_threads()
    sizes = {"attention_head_count": 16, "embed_count": 1024, "glu_embed_count": 2730, "layer_count": layers}
    model = MinDalle.__new__(MinDalle)
    model.device, model.dtype, model.is_reusable, model.text_token_count = "cpu", torch.float32, True, 64
    model.layer_count, model.embed_count = layers, sizes["embed_count"]
    encoder = DalleBartEncoder(**sizes, text_vocab_count=50264, text_token_count=64, device="cpu").eval()
    decoder = DalleBartDecoder(**sizes, image_vocab_count=16384, device="cpu").eval()
    model.encoder, model.decoder = encoder, decoder

    class Words:
        def tokenize(self, text: str, is_verbose: bool) -> list[int]:
            return list(range(2, 20))

    model.tokenizer = Words()
    model.image_grid_from_tokens = lambda image_tokens, **_: image_tokens  # codes, not pictures
    torch.set_num_threads(threads)
    side = round(batch**0.5)
    taken = seconds(lambda: next(model.generate_raw_image_stream("words", 1, side)))
    parameters = sum(p.numel() for module in (encoder, decoder) for p in module.parameters())
    return {"seconds": taken, "parameters": parameters}


def main() -> None:
    case, folder, depth, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    kind, _, argument = case.partition(":")
    runs = {"generate_images": generate_images, "own_cache": own_cache, "min_dalle": min_dalle_loop}
    result = write_weights(folder, argument, depth) if kind == "weights" else runs[kind](depth, int(argument))
    package = "min-dalle" if kind == "min_dalle" else "dalle-pytorch"
    print(json.dumps({**result, "torch": torch.__version__, "package": f"{package} {version(package)}"}))


if __name__ == "__main__":
    main()
