"""Pictures already turned into codes: shards that say which image tokenizer made them.

A shard is a safetensors file with `codes` (N, h, w), the captions as one utf-8 text (lines of one sample separated by
newlines) with `ends` (N,), and a header that names the tokenizer.

Shapes: N samples, h w grid of codes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dalle3.data.base import Sample
from dalle3.errors import DataError
from dalle3.files import whole_file


@dataclass(frozen=True, kw_only=True)
class Codec:
    """The image tokenizer that made some codes, as `checkpoint.describe_codec` describes it."""

    kind: str
    vocab: int
    grid: int
    sha256: str


def write_shard(path: Path, codes: Tensor, *, captions: Sequence[Sequence[str]], codec: Codec) -> None:
    """Writes codes (N, h, w) and the captions of each.

    Raises:
        OutputError: the file cannot be written.
    """
    texts = ["\n".join(lines).encode() for lines in captions]
    ends = torch.tensor([len(text) for text in texts]).cumsum(0)
    text = torch.frombuffer(bytearray(b"".join(texts) or b"\0"), dtype=torch.uint8)
    tensors = {"codes": codes.to(torch.int32).contiguous(), "text": text, "ends": ends}
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={"dalle3": "codes", "codec": json.dumps(asdict(codec))})


class CodeShards:
    """The samples of shards of codes.

    Raises:
        DataError: a file is missing or is no such shard, or the shards were made by different tokenizers.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise DataError("no shards of codes; write some with `dalle3 encode`")
        shards = [_read(path) for path in paths]
        self.codec, self.skipped = shards[0][0], []
        for path, (codec, _, _) in zip(paths, shards, strict=True):
            if codec != self.codec:
                raise DataError(f"{path} was made by {codec}, {paths[0]} by {self.codec}; train on one of them")
        self.codes = torch.cat([codes for _, codes, _ in shards])
        self.captions = [lines for _, _, captions in shards for lines in captions]

    def __len__(self) -> int:
        return len(self.codes)

    def name(self, index: int) -> str:
        """The sample's number."""
        return f"codes {index}"

    def load(self, index: int) -> Sample[Tensor]:
        """The codes (h, w), int64, and their captions."""
        return Sample(content=self.codes[index].long(), captions=self.captions[index])


def codec_of_shard(path: Path) -> Codec:
    """The image tokenizer that made a shard.

    Raises:
        DataError: the file is missing or is no such shard.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[Codec, Tensor, list[tuple[str, ...]]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist; write it with `dalle3 encode`")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("dalle3") != "codes":
                raise DataError(f"{path} holds no codes; expected a shard written by `dalle3 encode`")
            codes, text, ends = (file.get_tensor(name) for name in ("codes", "text", "ends"))
    except SafetensorError as error:
        raise DataError(f"{path} is not a whole safetensors file ({error}); write it again") from None
    return Codec(**json.loads(header["codec"])), codes, _captions(text.numpy().tobytes(), ends.tolist())


def _captions(text: bytes, ends: list[int]) -> list[tuple[str, ...]]:
    starts = [0, *ends[:-1]]
    texts = [text[start:end].decode() for start, end in zip(starts, ends, strict=True)]
    return [tuple(filter(None, lines.split("\n"))) for lines in texts]
