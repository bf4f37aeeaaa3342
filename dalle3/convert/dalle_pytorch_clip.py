"""The CLIP of dalle-pytorch, of any version, as our configuration and weights."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from dalle3.errors import CheckpointError
from dalle3.models.dalle_clip import DIM_HEAD, DalleClipConfig

_NAMES = {
    "temperature": "logit_scale",
    "text_emb.weight": "text_emb.weight",
    "text_pos_emb.weight": "text_pos.weight",
    "to_text_latent.weight": "text_projection.weight",
    "to_visual_embedding.weight": "patch_emb.weight",
    "to_visual_embedding.bias": "patch_emb.bias",
    "visual_pos_emb.weight": "patch_pos.weight",
    "to_visual_latent.weight": "visual_projection.weight",
}
_TOWERS = {"text_transformer": "text_transformer", "visual_transformer": "vision_transformer"}
_PARTS = {"norm": "pre", "to_qkv": "fn.to_qkv", "to_out.0": "fn.to_out", "net.0": "fn.up_gate", "net.3": "fn.down"}
_LAYER = re.compile(r"(\w+_transformer)\.layers\.layers\.(\d+)\.([01])\.(?:(.+)\.(weight|bias)|scale)")


def from_dalle_pytorch_clip(state: dict[str, Tensor]) -> tuple[DalleClipConfig, dict[str, Tensor]]:
    """The configuration and our float32 weights of dalle-pytorch's `CLIP`, every size read from the shapes in `state`.

    Raises:
        CheckpointError: weights of another model.
    """
    if missing := [name for name in _NAMES if name not in state]:
        raise CheckpointError(f"these are not the weights of dalle-pytorch's CLIP: {', '.join(missing)} not among them")
    ours = {_rename(name): _reshape(weight.float()) for name, weight in state.items()}
    return _config(state), _missing_scales(ours) | ours


def is_dalle_pytorch_clip(state: dict[str, Tensor]) -> bool:
    """Whether these are the weights of dalle-pytorch's CLIP, by their names."""
    return _NAMES.keys() <= state.keys()


def _rename(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    found = _LAYER.fullmatch(re.sub(r"(\.fn)+(?=\.)", "", name))  # wrappers come and go with versions
    if found is None or found[1] not in _TOWERS or found[4] not in (None, *_PARTS):
        raise CheckpointError(f"{name} is not a weight of dalle-pytorch's CLIP; is this another kind of model?")
    part = "scale" if found[4] is None else f"{_PARTS[found[4]]}.{found[5]}"
    return f"{_TOWERS[found[1]]}.layers.{found[2]}.{found[3]}.{part}"


def _reshape(weight: Tensor) -> Tensor:
    return weight.flatten() if weight.ndim == 3 else weight  # scales are (1, 1, D) there


def _missing_scales(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ones for the branches of files older than LayerScale."""
    norms = {name: weight for name, weight in ours.items() if name.endswith(".pre.weight")}
    return {name.replace(".pre.weight", ".scale"): torch.ones_like(weight) for name, weight in norms.items()}


def _config(state: dict[str, Tensor]) -> DalleClipConfig:
    vocab_size, text_width = state["text_emb.weight"].shape
    vision_width, patch_values = state["to_visual_embedding.weight"].shape
    patch_size = math.isqrt(patch_values // 3)
    return DalleClipConfig(
        embed_dim=state["to_text_latent.weight"].shape[0],
        image_size=patch_size * math.isqrt(state["visual_pos_emb.weight"].shape[0]),
        patch_size=patch_size,
        vision_width=vision_width,
        vision_layers=_layers(state, "visual_transformer"),
        vision_heads=_heads(state, "visual_transformer"),
        context_length=state["text_pos_emb.weight"].shape[0],
        vocab_size=vocab_size,
        text_width=text_width,
        text_layers=_layers(state, "text_transformer"),
        text_heads=_heads(state, "text_transformer"),
    )


def _layers(state: dict[str, Tensor], tower: str) -> int:
    return len({name.split(".")[3] for name in state if name.startswith(f"{tower}.layers.layers.")})


def _heads(state: dict[str, Tensor], tower: str) -> int:
    rows = [len(weight) for name, weight in state.items() if name.startswith(tower) and name.endswith("to_qkv.weight")]
    if not rows:
        raise CheckpointError(f"the {tower} of this CLIP has no attention layers; is the file complete?")
    return rows[0] // (3 * DIM_HEAD)
