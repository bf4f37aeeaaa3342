"""VQGAN and GumbelVQ as taming-transformers saves them: a Lightning `.ckpt`, and beside it a `.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from dalle3.checkpoint import Checkpoint
from dalle3.config import from_dict
from dalle3.convert.keys import dropped, split
from dalle3.errors import CheckpointError, ConfigError
from dalle3.models.vqgan import GumbelVQConfig, VQGANConfig

CONFIGS = {"gumbel_vq": GumbelVQConfig, "vqgan": VQGANConfig}
TARGETS = {"GumbelVQ": "gumbel_vq", "VQModel": "vqgan", "VQModelInterface": "vqgan"}
ASSUMED_RESOLUTION = 256
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
_REASONS = {
    "loss": "the discriminator and the perceptual loss are for training",
    "model_ema": "a second, averaged copy of the weights",
    "colorize": "colours for segmentation maps",
}
# ddconfig keys that change what the network computes, and the only value this implementation has.
_FIXED = {
    "double_z": False,
    "attn_type": "vanilla",
    "give_pre_end": False,
    "tanh_out": False,
    "use_linear_attn": False,
}


def is_taming(state: dict[str, Any]) -> bool:
    """Whether these are the weights of a VQGAN or GumbelVQ, by their names."""
    return "decoder.conv_in.weight" in state and _kind(state) is not None


def taming_checkpoint(state: dict[str, Tensor], config: dict[str, Any] | None) -> Checkpoint:
    """The image tokenizer of a taming state dict.

    Args:
        config: what the yaml holds; None reads every size from the shapes of the weights.
    Raises:
        CheckpointError: the yaml and the weights are of different models.
        ConfigError: a model that cannot be built here.
    """
    kind = _kind(state)
    if kind is None:
        raise CheckpointError("no codebook (quantize.embed or quantize.embedding) among the weights: not a VQGAN")
    ours, others = split(state, PARTS)
    if kind == "gumbel_vq" and "quantize.proj.weight" not in ours:
        raise CheckpointError("a codebook under quantize.embed but no quantize.proj: not a GumbelVQ of taming")
    notes: tuple[str, ...] = ()
    if config is None:
        notes = (f"no yaml: sizes read from the weights, pictures assumed to be {ASSUMED_RESOLUTION} pixels wide",)
    return Checkpoint(
        kind=kind,
        config=CONFIGS[kind](**infer_config(ours)) if config is None else _from_yaml(kind, config),
        state=ours,
        dropped=dropped(others, _REASONS),
        notes=notes,
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The `model` part of a taming configuration: {"target", "params"}.

    Raises:
        CheckpointError: missing, not YAML, or not the configuration of an image tokenizer.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} is not YAML ({' '.join(str(error).split())[:120]})") from None
    model = data.get("model", data) if isinstance(data, dict) else None
    params = model.get("params") if isinstance(model, dict) else None
    if not isinstance(params, dict) or not isinstance(params.get("ddconfig"), dict):
        raise CheckpointError(
            f"{path} has no model.params.ddconfig, so it does not describe a VQGAN; "
            "give the yaml that came with the image tokenizer"
        )
    assert isinstance(model, dict)
    return model


def find_yaml(path: Path) -> Path | None:
    """The configuration that lies beside a `.ckpt` under one of the names it is published with."""
    stems = (path.stem, path.stem.replace("model", "config"), "model", "config")
    candidates = [path.with_name(stem + ending) for stem in stems for ending in (".yaml", ".yml")]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def infer_config(state: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of the configuration, read from the shapes of the weights.

    Only the picture size does not show in them; the levels that attend are told at the assumed one.
    """
    levels = _count(state, "encoder.down.")
    ch = state["encoder.conv_in.weight"].shape[0]
    widths = [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    attending = [level for level in range(levels) if f"encoder.down.{level}.attn.0.norm.weight" in state]
    codebook = state.get("quantize.embed.weight", state.get("quantize.embedding.weight"))
    assert codebook is not None
    return {
        "num_tokens": codebook.shape[0],
        "embed_dim": codebook.shape[1],
        "z_channels": state["decoder.conv_in.weight"].shape[1],
        "resolution": ASSUMED_RESOLUTION,
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_ch": state["decoder.conv_out.weight"].shape[0],
        "ch": ch,
        "ch_mult": tuple(width // ch for width in widths),
        "num_res_blocks": _count(state, "encoder.down.0.block."),
        "attn_resolutions": tuple(ASSUMED_RESOLUTION >> level for level in attending),
        "resamp_with_conv": levels == 1 or "encoder.down.0.downsample.conv.weight" in state,
    }


def _kind(state: dict[str, Any]) -> str | None:
    if "quantize.embed.weight" in state:
        return "gumbel_vq"
    return "vqgan" if "quantize.embedding.weight" in state else None


def _count(state: dict[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def _from_yaml(kind: str, model: dict[str, Any]) -> Any:
    target = str(model.get("target", "")).rsplit(".", 1)[-1]
    if target and TARGETS.get(target) != kind:
        raise CheckpointError(
            f"the yaml is of a {model['target']} and the weights are of a {kind}; they come from different models"
        )
    params = model["params"]
    fields = dict(params["ddconfig"])
    for key, value in _FIXED.items():
        if (found := fields.pop(key, value)) != value:
            raise ConfigError(f"ddconfig has {key}: {found}; only {key}: {value} is supported")
    for name in ("ch_mult", "attn_resolutions"):
        fields[name] = tuple(fields.get(name, ()))
    for ours, theirs in {"embed_dim": "embed_dim", "num_tokens": "n_embed"}.items():
        if theirs not in params:
            raise ConfigError(f"the yaml has no model.params.{theirs}")
        fields[ours] = params[theirs]
    if kind == "gumbel_vq" and "kl_weight" in params:
        fields["kl_weight"] = float(params["kl_weight"])
    return from_dict(CONFIGS[kind], fields)
