"""The transformer of dalle-pytorch's checkpoints, of every era and of the DALL-3 fork, in our names.

The same weights were saved under different keys as releases wrapped layers in ever more modules, and older files
lack hyper-parameters whose default has changed since. So the tensors decide wherever they can; `hparams` fills in
what no tensor shows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dalle3.errors import CheckpointError
from dalle3.models.dalle import DalleConfig

CAUSAL_CONV_SINCE = (1, 5, 0)  # the release in which `conv_like` took its present meaning

_LAYER = re.compile(r"transformer\.layers\.(?:layers|blocks)\.(\d+)\.([01]|[fg]\.net)(?:\.[fn]+)*\.(.+)")
_BRANCH = {"0": 0, "1": 1, "f.net": 0, "g.net": 1}
_PARTS = {
    "scale": "scale",
    "norm.weight": "pre.weight",
    "norm.bias": "pre.bias",
    "norm_out.weight": "post.weight",
    "norm_out.bias": "post.bias",
    "to_qkv.weight": "fn.to_qkv.weight",
    "to_out.0.weight": "fn.to_out.weight",
    "to_out.0.bias": "fn.to_out.bias",
    "net.0.weight": "fn.up_gate.weight",
    "net.0.bias": "fn.up_gate.bias",
    "net.3.weight": "fn.down.weight",
    "net.3.bias": "fn.down.bias",
}
_ENDS = {
    "text_emb.weight": "text_emb.weight",
    "image_emb.weight": "image_emb.weight",
    "text_pos_emb.weight": "text_pos.weight",
    "to_logits.0.weight": "norm.weight",
    "to_logits.0.bias": "norm.bias",
    "to_logits.1.weight": "to_logits.weight",
    "to_logits.1.bias": "to_logits.bias",
}
_AXIAL = {"0": "image_pos.rows", "1": "image_pos.cols"}
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_RECOMPUTED = ("transformer.pos_emb", "logits_mask")


def dalle_from_dalle_pytorch(
    weights: Mapping[str, Tensor], hparams: Mapping[str, Any], *, version: str | None = None
) -> tuple[DalleConfig, dict[str, Tensor], dict[str, str]]:
    """The configuration, the state dict and the keys left out, each with its reason.

    Args:
        weights: the state dict of `DALLE`; keys under `vae.` are for the image tokenizer's reader.
        hparams: as saved beside it; may lack what its era did not know.
        version: the release that wrote the file, which files have recorded since 1.1.6; None is older.
    Raises:
        CheckpointError: a key has no place in our model, or the tensors do not make a DALLE.
        ConfigError: an attention type that cannot be run.
    """
    state, dropped = {}, {}
    for key, tensor in weights.items():
        if key.startswith("vae."):
            continue
        if reason := _why_dropped(key):
            dropped[key] = reason
        else:
            name = _our_name(key)
            state[name] = _our_shape(name, tensor)
    config = _config(weights, state, hparams, version)
    _add_missing_scales(state, config)
    return config, state, dropped


def adam_moments(
    weights: Mapping[str, Tensor], opt_state: Any, state: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]] | None:
    """What Adam remembers of each parameter, {"step", "exp_avg", "exp_avg_sq"} under our names; None if unclear.

    dalle-pytorch numbers parameters in the order of its modules, which is that of its state dict without the tables and
    the image tokenizer. Each shape must be the parameter's.

    Args:
        weights: as in `dalle_from_dalle_pytorch`.
        opt_state: the state dict of its optimizer.
        state: our state dict of the same weights.
    """
    numbered = opt_state.get("state") if isinstance(opt_state, dict) else None
    keys = [key for key in weights if not key.startswith("vae.") and not _why_dropped(key)]
    if not isinstance(numbered, dict) or sorted(numbered) != list(range(len(keys))):
        return None
    moments = {}
    for number, key in enumerate(keys):
        found = numbered[number]
        if not all(name in found for name in _MOMENTS) or found["exp_avg"].shape != weights[key].shape:
            return None
        moments[_our_name(key)] = {
            "step": torch.as_tensor(found["step"], dtype=torch.float32),
            **{name: found[name].reshape(state[_our_name(key)].shape) for name in ("exp_avg", "exp_avg_sq")},
        }
    return moments


def _why_dropped(key: str) -> str | None:
    if key in _RECOMPUTED or key.endswith((".static_mask", ".mask")):
        return "a table that is computed anew"
    if re.fullmatch(r"(text|image)_emb\.linear\.(weight|bias)", key):
        return "rows of to_logits under a second name"
    return None


def _our_name(key: str) -> str:
    if key in _ENDS:
        return _ENDS[key]
    if axial := re.fullmatch(r"image_pos_emb\.weights[._]([01])", key):
        return _AXIAL[axial[1]]
    match = _LAYER.fullmatch(key)
    part = _PARTS.get(match[3]) if match else None
    if match is None or part is None:
        raise CheckpointError(f"the tensor {key} belongs to no DALLE that dalle-pytorch 0.x to 1.6.6 could save")
    return f"transformer.layers.{match[1]}.{_BRANCH[match[2]]}.{part}"


def _our_shape(name: str, tensor: Tensor) -> Tensor:
    if name.endswith(".scale"):
        return tensor.flatten()
    return tensor.reshape(max(tensor.shape[1:3]), -1) if name.startswith("image_pos.") else tensor


def _config(
    weights: Mapping[str, Tensor], state: dict[str, Tensor], hparams: Mapping[str, Any], version: str | None
) -> DalleConfig:
    try:
        layer = "transformer.layers.0"
        dim = state["norm.weight"].numel()
        inner = state[f"{layer}.0.fn.to_out.weight"].shape[1]
        num_tokens = state["to_logits.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"there is no tensor {error} here; this is not a DALLE of dalle-pytorch") from None
    heads, text_seq_len = int(hparams.get("heads") or 8), _text_seq_len(state, hparams)
    shares = "image_emb.weight" not in state
    num_image_tokens = _num_image_tokens(state, hparams, text_seq_len)
    return DalleConfig(
        num_text_tokens=num_tokens - num_image_tokens - text_seq_len,
        text_seq_len=text_seq_len,
        num_image_tokens=num_image_tokens,
        image_grid=_grid(weights, state, text_seq_len, hparams),
        dim=dim,
        depth=1 + max(int(key.split(".")[2]) for key in state if key.startswith("transformer.layers.")),
        heads=heads,
        dim_head=inner // heads,
        attn_types=_attn_types(hparams, version),
        reversible=any(key.startswith("transformer.layers.blocks.") for key in weights),
        attn_dropout=float(hparams.get("attn_dropout") or 0.0),
        ff_dropout=float(hparams.get("ff_dropout") or 0.0),
        loss_img_weight=float(hparams.get("loss_img_weight", 7.0)),
        stable_softmax=bool(hparams.get("stable", False)),
        sandwich_norm=f"{layer}.0.post.weight" in state,
        shift_tokens=_shifts_tokens(weights),
        rotary_emb="text_pos.weight" not in state,
        shared_attn_ids=_ids(hparams.get("shared_attn_ids")),
        shared_ff_ids=_ids(hparams.get("shared_ff_ids")),
        share_input_output_emb=shares,
    )


def _text_seq_len(state: dict[str, Tensor], hparams: Mapping[str, Any]) -> int:
    if "text_pos.weight" in state:
        return state["text_pos.weight"].shape[0] - 1  # one position is <bos>
    return int(hparams.get("text_seq_len", 256))


def _num_image_tokens(state: dict[str, Tensor], hparams: Mapping[str, Any], text_seq_len: int) -> int:
    if "image_emb.weight" in state:
        return state["image_emb.weight"].shape[0]
    if "num_text_tokens" not in hparams:
        raise CheckpointError("a DALLE with shared embeddings needs num_text_tokens in its hparams, and has none")
    return state["to_logits.weight"].shape[0] - int(hparams["num_text_tokens"]) - text_seq_len


def _grid(
    weights: Mapping[str, Tensor], state: dict[str, Tensor], text_seq_len: int, hparams: Mapping[str, Any]
) -> int:
    if "image_pos.rows" in state:
        return state["image_pos.rows"].shape[0]
    positions = weights.get("transformer.pos_emb")
    if positions is not None:
        for codes in (
            positions.shape[-2] - text_seq_len,
            positions.shape[-2] - text_seq_len - 1,
        ):  # the fork, the others
            if codes > 0 and math.isqrt(codes) ** 2 == codes:
                return math.isqrt(codes)
    raise CheckpointError("no tensor shows how many codes a picture has; this is not a DALLE of dalle-pytorch")


def _attn_types(hparams: Mapping[str, Any], version: str | None) -> tuple[str, ...]:
    given = hparams.get("attn_types") or ("full",)
    types = tuple(given.split(",")) if isinstance(given, str) else tuple(given)
    centred = version is None or tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < CAUSAL_CONV_SINCE
    return tuple("conv_like_centred" if kind == "conv_like" and centred else kind for kind in types)


def _shifts_tokens(weights: Mapping[str, Tensor]) -> bool:
    """Whether more modules wrap a feed-forward than its norm and its scale do."""
    key = next(key for key in weights if key.endswith(".net.0.weight") and key.startswith("transformer.layers."))
    has_scale = any(key.endswith(".scale") for key in weights)
    return key.count(".fn") > 1 + has_scale


def _ids(given: Any) -> tuple[int, ...] | None:
    return None if given is None else tuple(int(i) for i in given)


def _add_missing_scales(state: dict[str, Tensor], config: DalleConfig) -> None:
    """Files from before LayerScale (April 2021) add their branches unscaled."""
    for layer in range(config.depth):
        for branch in (0, 1):
            state.setdefault(f"transformer.layers.{layer}.{branch}.scale", torch.ones(config.dim))
