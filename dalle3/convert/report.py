"""What can be said of a file without running anything in it: the facts `dalle3 inspect` prints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dalle3.checkpoint import Checkpoint, is_checkpoint
from dalle3.config import to_dict
from dalle3.convert import from_value, read, read_value
from dalle3.convert.detect import READABLE, recognise, say
from dalle3.convert.pickles import DEEPEST, ForbiddenGlobalError, Inert, list_globals, module_class, module_state
from dalle3.convert.signature import DESCRIPTIONS, looks_like, not_weights
from dalle3.errors import CheckpointError
from dalle3.shipped import located

CLIP_VOCABULARY = 49408
CONTAINERS = ("torch", "torchscript", "pickle", "safetensors", "json")


def report(path: Path, *, config_path: Path | None = None, keys: bool = False) -> dict[str, Any]:
    """The facts about a file or folder, ready for JSON; "problem" is among them where it cannot be used.

    Args:
        keys: list every tensor too.
    Raises:
        CheckpointError: the file is missing or broken, or of a kind that holds neither weights, codes nor recipes.
    """
    path = located(path)
    kind = looks_like(path)
    facts: dict[str, Any] = {"file": str(path), "container": DESCRIPTIONS[kind].split(":")[0]}
    if kind == "folder":
        checkpoint = read(path, config_path=config_path)
        ours = {"format": "dalle3"} if is_checkpoint(path) else {}
        return facts | _of_checkpoint(checkpoint) | ours | (_keys(checkpoint.state) if keys else {})
    if kind == "npy":
        return facts | _of_codes(path)
    if kind == "png":
        return facts | _of_picture(path)
    if kind not in CONTAINERS:
        raise not_weights(path, kind)
    facts["bytes_on_disk"] = path.stat().st_size
    try:
        value = read_value(path)
    except ForbiddenGlobalError as error:
        return facts | {"problem": str(error), "globals": list_globals(path)}
    tensors = dict(_walk(value))
    return facts | _of_value(value, tensors, path, config_path) | (_keys(tensors) if keys else {})


def _of_value(value: Any, tensors: dict[str, Tensor], path: Path, config_path: Path | None) -> dict[str, Any]:
    name = recognise(value)
    facts = {"format": name or "unknown", "holds": say(value)}
    if name in READABLE:
        try:
            return facts | _of_checkpoint(from_value(value, path, config_path=config_path))
        except CheckpointError as error:
            facts["problem"] = str(error)
    elif name is None:
        facts["problem"] = "not a format known here"
    return facts | _numbers(tensors)


def _of_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    source = checkpoint.source
    facts = {
        "format": source.format if source else "dalle3",
        "kind": checkpoint.kind,
        **_numbers(checkpoint.state),
        "config": to_dict(checkpoint.config),
        "source": to_dict(source) if source else None,
        "codec": {"inside": checkpoint.codec is not None, **(checkpoint.codec_info or {})},
        "tokenizer": checkpoint.tokenizer,
        "recommended": checkpoint.recommended.stated,
        "training": {k: v for k, v in (checkpoint.training or {}).items() if isinstance(v, (int, float, str))},
        "needs": list(needs(checkpoint)),
        "notes": list(checkpoint.notes),
        "dropped": list(checkpoint.dropped),
    }
    if checkpoint.kind not in ("dalle", "dalle_lora", "unet"):
        del facts["codec"]
    return {key: fact for key, fact in facts.items() if fact not in (None, [], {})}


def needs(checkpoint: Checkpoint) -> Iterator[str]:
    """What a checkpoint must have beside it before it can draw, one sentence each."""
    config = checkpoint.config
    if checkpoint.kind == "unet" and checkpoint.codec is None and config.unet.emb_input_dims is not None:
        yield f"the image tokenizer of its codes, whose entries are {config.unet.emb_input_dims} wide: --vae_path"
    if checkpoint.kind == "dalle_lora":
        yield f"its DALLE, {config.base_path} of sha256 {config.base_sha256[:12]}: --dalle_path, where that has moved"
    if checkpoint.kind != "dalle":
        return
    if checkpoint.codec is None:
        kind = (checkpoint.codec_info or {}).get("kind")
        yield (
            f"an image tokenizer {f'of kind {kind} ' if kind else ''}with {config.num_image_tokens} entries: "
            "--vae_path, or --vqgan_model_path and --vqgan_config_path"
        )
    if checkpoint.tokenizer is None:
        clip = ", which is the number of CLIP's, the default" if config.num_text_tokens == CLIP_VOCABULARY else ""
        yield f"a text tokenizer with {config.num_text_tokens} entries{clip}: --bpe_path (with --hug or --chinese)"


def _numbers(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """How many numbers there are, of which formats, and the memory they take."""
    counts = Counter[str]()
    for tensor in tensors.values():
        counts[_format(tensor)] += tensor.numel()
    return {
        "parameters": counts.total(),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "numbers": dict(counts.most_common()),
    }


def _keys(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {"keys": {name: [_format(tensor), list(tensor.shape)] for name, tensor in tensors.items()}}


def _format(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _walk(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside dictionaries, lists and pickled modules, under a dotted name."""
    if prefix.count(".") > DEEPEST:  # a pickle can hold a list that contains itself
        return
    if isinstance(value, Tensor):
        yield prefix.rstrip("."), value
    elif isinstance(value, Inert) and module_class(value):
        yield from ((prefix + name, tensor) for name, tensor in module_state(value).items())
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, f"{prefix}{key}.")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _walk(item, f"{prefix}{index}.")


def _of_codes(path: Path) -> dict[str, Any]:
    try:
        codes = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise CheckpointError(f"{path} is a NumPy array that cannot be read ({error})") from None
    facts: dict[str, Any] = {"shape": list(codes.shape), "numbers": str(codes.dtype)}
    if codes.dtype.kind not in "iu" or not codes.size:
        return {**facts, "problem": f"{path} holds {codes.dtype} numbers; image codes are integers"}
    return {**facts, "holds": "image codes", "lowest": int(codes.min()), "highest": int(codes.max())}


def _of_picture(path: Path) -> dict[str, Any]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            facts: dict[str, Any] = {"size": list(image.size), "mode": image.mode}
            recipe = getattr(image, "text", {}).get("dalle3")
    except (OSError, ValueError, SyntaxError) as error:
        raise CheckpointError(f"{path} is a PNG picture that cannot be read ({error})") from None
    if recipe is None:
        return {**facts, "holds": "a picture without a recipe of dalle3"}
    try:
        return {**facts, "holds": "a picture drawn by dalle3", "recipe": json.loads(recipe)}
    except ValueError:
        return {**facts, "problem": f"{path} has a recipe that is not JSON"}
