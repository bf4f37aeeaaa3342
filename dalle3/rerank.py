"""Which of many pictures show what the prompt says: CLIP's scores, and the best of them without holding the rest."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle3.checkpoint import Checkpoint, build
from dalle3.convert.hugging_face_clip import WEIGHTS
from dalle3.convert.roles import CLIP, read_as
from dalle3.errors import CheckpointError, DependencyError
from dalle3.runtime import openai_clip_cache
from dalle3.shipped import located
from dalle3.tokenizers.base import Tokenizer, tokenize
from dalle3.tokenizers.clip_bpe import ClipBPE, clip_context
from dalle3.tokenizers.load import read_tokenizer

HUB_CLIP = "openai/clip-vit-base-patch16"
CLIP_FOLDER = "clip"  # in the folder of a model
GPU_BATCH = 16  # pictures a GPU scores at once; they are 3000 patches of a ViT-B/16, which keeps it busy

T = TypeVar("T")
Tokenize = Callable[[list[str]], Tensor]  # captions -> ids (B, N)


class Scorer(Protocol):
    """An nn.Module that is a `Clip` or a `DalleClip`."""

    def encode_text(self, ids: Tensor) -> Tensor:
        """Unit vectors (B, E) of captions (B, N)."""
        ...

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Unit vectors (B, E) of pictures (B, 3, H, W) in [0, 1]."""
        ...


class Ranker(Generic[T]):
    """Scores pictures by their cosine to one prompt and keeps the best.

    A score depends on the picture alone, to the bit, not on those it comes with: a CPU takes them one at a
    time, at nearly the speed of batches, and a GPU in batches that are filled up to one size.
    """

    def __init__(self, clip: Scorer, tokenize: Tokenize, prompt: str, *, keep: int | None = None) -> None:
        """Encodes `prompt`, once.

        Args:
            keep: how many pictures to keep; None keeps all.
        """
        assert keep is None or keep >= 1, "the request is checked where it is made"
        self._clip, self._keep = clip, keep
        self._device = next(clip.parameters()).device  # type: ignore[attr-defined]
        self._batch = 1 if self._device.type == "cpu" else GPU_BATCH
        self._best: list[tuple[float, int, T]] = []  # a heap of (score, -index, payload), the worst first
        with torch.inference_mode():
            self._text = clip.encode_text(tokenize([prompt]).to(self._device))

    def scores(self, images: Tensor) -> Tensor:
        """Cosines (B,) to the prompt, float32 on the CPU, of pictures (B, 3, H, W) in [0, 1] of any size."""
        with torch.inference_mode():
            return torch.cat([self._score(some.to(self._device)) for some in images.split(self._batch)]).cpu()

    def add(self, images: Tensor, indices: Sequence[int], payloads: Sequence[T]) -> Tensor:
        """Scores pictures (B, 3, H, W), keeps those that are among the best so far, and returns the scores (B,).

        Args:
            indices: a number of each picture that no other has; it decides between equal scores.
            payloads: what to keep of each picture.
        """
        scores = self.scores(images)
        for score, index, payload in zip(scores.tolist(), indices, payloads, strict=True):
            heapq.heappush(self._best, (score, -index, payload))
            if self._keep is not None and len(self._best) > self._keep:
                heapq.heappop(self._best)
        return scores

    def best(self) -> list[tuple[float, int, T]]:
        """(score, index, payload) of what was kept: highest score first, among equals lowest index first."""
        return [(score, -negative, payload) for score, negative, payload in sorted(self._best, reverse=True)]

    def _score(self, images: Tensor) -> Tensor:
        count = len(images)
        images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, self._batch - count))
        return (self._clip.encode_image(images) * self._text).sum(-1)[:count]


class BestOf(Generic[T]):
    """Of every `number` pictures that come one after another, the one that shows the prompt best; of equals the first.

    Args:
        ranker: what scores them; there need be none where `number` is 1.
    """

    def __init__(self, ranker: Ranker[T] | None, number: int) -> None:
        assert number == 1 or ranker is not None, "somebody has to choose"
        self._ranker, self._number = ranker, number
        self._group: list[tuple[float, Tensor, T]] = []

    def add(self, images: Tensor, payloads: Sequence[T]) -> tuple[Tensor, Sequence[T]]:
        """The winners, W of them, that pictures (B, 3, H, W) completed: (W, 3, H, W), and their payloads."""
        if self._number == 1:
            return images, payloads
        assert self._ranker is not None
        winners = []
        for found in zip(self._ranker.scores(images).tolist(), images, payloads, strict=True):
            self._group.append(found)
            if len(self._group) == self._number:
                winners.append(max(self._group, key=lambda one: one[0]))
                self._group = []
        pixels = [image for _, image, _ in winners]
        return torch.stack(pixels) if pixels else images[:0], [payload for *_, payload in winners]


def load_clip(
    name: str | Path,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    tokenizer: Tokenizer | None = None,
) -> tuple[Scorer, Tokenize]:
    """A CLIP that is ready to rank, and what turns captions into its ids.

    Args:
        name: a dalle3 folder, a Hugging Face folder, an archive of OpenAI such as `ViT-B-16.pt`, the weights of
            a CLIP of dalle-pytorch, or a name on the Hugging Face hub.
        dtype: of the weights; features are float32 whatever it is.
        tokenizer: that of the DALLE, for a CLIP which brings none.
    Raises:
        CheckpointError: it is missing, cannot be fetched, is no CLIP, or has no tokenizer.
        DependencyError: `transformers` is not installed.
    """
    path = located(Path(name))
    if not path.exists():
        path = _fetch(str(name))
    checkpoint = read_as(path, CLIP, flag="--clip")
    # Ids first: a CLIP that cannot read should say so before it is built.
    ids = _tokenize(checkpoint, path, tokenizer)
    return cast(Scorer, build(checkpoint, device=device, dtype=dtype)), ids


def load_default_clip(
    model: Path,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    tokenizer: Tokenizer | None = None,
) -> tuple[Scorer, Tokenize]:
    """The CLIP in the folder `model`, else the ViT-B/16 that OpenAI's package downloaded, else that of the hub.

    Raises:
        CheckpointError: none of the three is at hand.
    """
    beside, archive = model / CLIP_FOLDER, openai_clip_cache() / "ViT-B-16.pt"
    for path in (beside, archive):
        if path.exists():
            return load_clip(path, device=device, dtype=dtype, tokenizer=tokenizer)
    try:
        return load_clip(HUB_CLIP, device=device, dtype=dtype)
    except CheckpointError as error:
        raise CheckpointError(f"no CLIP to rank with: there is no {beside} and no {archive}, and {error}") from None


def _tokenize(checkpoint: Checkpoint, path: Path, tokenizer: Tokenizer | None) -> Tokenize:
    config = checkpoint.config
    if checkpoint.kind == "clip" and config.text_end == "highest_id":
        if config.vocab_size == ClipBPE.vocab_size:
            return partial(clip_context, ClipBPE(), length=config.context_length)
        return _framed(path, config.context_length)
    if checkpoint.tokenizer is not None:
        tokenizer = read_tokenizer(path, checkpoint.tokenizer)
    if tokenizer is None:
        raise CheckpointError(f"{path} holds a CLIP without its tokenizer; keep it in a folder that has one")
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{path} holds a CLIP that reads {config.vocab_size} tokens, and the {tokenizer.kind} tokenizer has "
            f"{tokenizer.vocab_size}; pass the CLIP that was trained with this tokenizer as --clip"
        )
    return partial(tokenize, tokenizer, length=config.context_length, truncate=True)


def _framed(path: Path, length: int) -> Tokenize:
    """The tokenizer of a Hugging Face folder, whose own rules put start and end around a caption."""
    import tokenizers

    file = path / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{path} holds a CLIP with a vocabulary of its own and no tokenizer.json to read it with")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{file} is not a tokenizers JSON ({error}); copy it again") from None
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    return lambda texts: torch.tensor([encoded.ids for encoded in tokenizer.encode_batch(texts)])


def _fetch(name: str) -> Path:
    """The folder of a CLIP of the Hugging Face hub, downloaded where it is not yet on this machine."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) or name.endswith((".pt", ".bin", ".safetensors")):
        raise CheckpointError(
            f"{name}: no such file or folder; --clip takes a file, a folder, or a name like {HUB_CLIP}"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise DependencyError('a CLIP of the hub needs transformers: pip install "dalle3[clip]"') from error
    try:
        return _cached(name, snapshot_download) or _download(name, snapshot_download)
    except Exception as error:  # network libraries share no base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{name} is not on this machine and cannot be fetched from the Hugging Face hub ({reason}); where there "
            f"is a connection, run `hf download {name} --local-dir clip`, and pass that folder as --clip"
        ) from None


def _cached(name: str, snapshot_download: Callable[..., str]) -> Path | None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if any((folder / file).is_file() for file in WEIGHTS) else None


def _download(name: str, snapshot_download: Callable[..., str]) -> Path:
    from huggingface_hub import HfApi

    # Asked first, because it fails at once without a connection; a download tries six times in 23 s.
    files = {sibling.rfilename for sibling in HfApi().model_info(name, timeout=10).siblings or ()}
    weights = next((file for file in WEIGHTS if file in files), WEIGHTS[0])
    return Path(snapshot_download(name, allow_patterns=["config.json", "tokenizer.json", weights]))
