"""A folder as `CLIPModel.save_pretrained` writes it, and as the hub keeps it, as our configuration and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle3.checkpoint import read_safetensors
from dalle3.convert.pickles import load_pickle
from dalle3.errors import CheckpointError, ConfigError, DependencyError
from dalle3.models.clip import ClipConfig

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TABLES = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")  # saved by transformers < 4.31
_LEGACY_END = 2  # what OpenAI's own configurations call the end token, which is 49407


def from_hugging_face(folder: Path) -> tuple[ClipConfig, dict[str, Tensor]]:
    """The configuration and float32 weights of the CLIP in `folder`, position tables left out.

    Raises:
        CheckpointError: a file is missing or broken, or it is not a CLIP that this project can run.
        DependencyError: `transformers` is not installed.
    """
    config, weights = _config(folder), _read_weights(weights_file(folder))
    return config, {name: weight.float() for name, weight in weights.items() if name not in _TABLES}


def is_hugging_face(folder: Path) -> bool:
    """Whether `folder` has the configuration of a model of `transformers`."""
    return "model_type" in _read_json(folder) if (folder / "config.json").is_file() else False


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); copy or download the folder again") from None


def weights_file(folder: Path) -> Path:
    """The file of weights in `folder`.

    Raises:
        CheckpointError: there is none.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} holds neither {' nor '.join(WEIGHTS)}; copy or download the folder again")
    return path


def _read_weights(path: Path) -> dict[str, Tensor]:
    return load_pickle(path) if path.suffix == ".bin" else read_safetensors(path)


def _config(folder: Path) -> ClipConfig:
    told = _read_json(folder)
    if told.get("model_type") != "clip":
        raise CheckpointError(f"{folder} holds a model of type {told.get('model_type')!r}; expected 'clip'")
    try:
        from transformers.models.clip.configuration_clip import CLIPConfig
    except ImportError as error:
        raise DependencyError('CLIP needs the package transformers: pip install "dalle3[clip]"') from error
    whole: Any = CLIPConfig(**told)  # fills in what the file leaves to the library's defaults
    text, vision = whole.text_config, whole.vision_config
    _check(folder, text, vision)
    try:
        return ClipConfig(
            embed_dim=whole.projection_dim,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            vision_width=vision.hidden_size,
            vision_layers=vision.num_hidden_layers,
            vision_heads=vision.num_attention_heads,
            context_length=text.max_position_embeddings,
            vocab_size=text.vocab_size,
            text_width=text.hidden_size,
            text_layers=text.num_hidden_layers,
            text_heads=text.num_attention_heads,
            activation=text.hidden_act,
            text_end="highest_id",
        )
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def _check(folder: Path, text: Any, vision: Any) -> None:
    """Raises CheckpointError where the folder needs what `ClipConfig` cannot say."""
    needs = {
        "feed-forwards four times as wide as the model": all(
            tower.intermediate_size == 4 * tower.hidden_size for tower in (text, vision)
        ),
        "one activation, quick_gelu or gelu": text.hidden_act == vision.hidden_act in ("quick_gelu", "gelu"),
        "norms with an epsilon of 1e-5": text.layer_norm_eps == vision.layer_norm_eps == 1e-5,
        "an end token that is the last of the vocabulary": text.eos_token_id in (_LEGACY_END, text.vocab_size - 1),
    }
    if lacking := [need for need, met in needs.items() if not met]:
        raise CheckpointError(f"{folder}: this CLIP cannot be run here; it would need {' and '.join(lacking)}")
