"""Figures of an image tokenizer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dalle3.evaluate.closeness import Closeness, CodeUse
from dalle3.evaluate.examples import Examples
from dalle3.evaluate.frechet import frechet_distance
from dalle3.evaluate.judge import Judge
from dalle3.evaluate.report import Row
from dalle3.models.image_tokenizer import ImageTokenizer


def measure_codec(codec: ImageTokenizer, batches: Iterable[Examples], *, judge: Judge | None) -> Row:
    """What is left of pictures after they went through codes, and how much of the codebook they use.

    Args:
        codec: the image tokenizer.
        batches: pictures of the size it was made for.
        judge: adds the Fréchet distance of redrawn to original pictures.
    """
    assert isinstance(codec, nn.Module)
    device = next(codec.parameters()).device
    closeness, use = Closeness(), CodeUse(codec.num_tokens)
    seen: list[Tensor] = []
    number = 0
    for examples in batches:
        codes = codec.encode(examples.pictures.to(device))
        with torch.inference_mode():
            redrawn = codec.decode(codes).cpu()
        closeness.add(redrawn, examples.pictures)
        use.add(codes)
        number += len(codes)
        if judge is not None:
            seen.append(torch.stack([judge.see(examples.pictures), judge.see(redrawn)]))
    row: Row = {"number": number, **closeness.figures(), **use.figures()}
    if judge is None or number < 2:
        return row
    real, redrawn = torch.cat(seen, dim=1)
    return {**row, "frechet": frechet_distance(redrawn, real)}
