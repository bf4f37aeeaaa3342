"""The image tokenizers inside dalle-pytorch's files: `vae.pt`, and `vae.*` among the weights of a DALLE."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from dalle3.checkpoint import Checkpoint
from dalle3.config import from_dict
from dalle3.convert.keys import dropped, split, tensors, under, without_wrapper
from dalle3.convert.openai_dvae import is_openai_dvae, openai_dvae_checkpoint
from dalle3.convert.taming import is_taming, taming_checkpoint
from dalle3.errors import CheckpointError
from dalle3.models.discrete_vae import DiscreteVAEConfig

PARTS = ("codebook.", "encoder.", "decoder.")
CLASSES = {"DiscreteVAE": "discrete_vae", "OpenAIDiscreteVAE": "openai_dvae"}  # a VQGanVAE may be of two kinds
VAE = "vae."
_FIELDS = {field.name for field in dataclasses.fields(DiscreteVAEConfig)}
_REASONS = {
    "optimizer": "the optimizer's moments are in the order of the original's parameters",
    "opt_state": "the optimizer's moments are in the order of the original's parameters",
    "scheduler_state": "of a run of the original",
    "version": "dalle-pytorch's",
}


def vae_checkpoint(raw: dict[str, Any]) -> Checkpoint:
    """The DiscreteVAE of what `train_vae.py` saves, {"hparams", "weights"}.

    Raises:
        CheckpointError: there are no weights in it.
        ConfigError: a DiscreteVAE that cannot be built here.
    """
    if not isinstance(raw["weights"], dict):
        raise CheckpointError(f"its weights are not here: {str(raw['weights'])[:120]}")
    checkpoint = discrete_vae(raw["hparams"], without_wrapper(tensors(raw["weights"])))
    others = [key for key in raw if key not in ("hparams", "weights")]
    checkpoint.dropped += dropped(others, _REASONS)
    return checkpoint


def discrete_vae(hparams: dict[str, Any], state: dict[str, Tensor]) -> Checkpoint:
    """The DiscreteVAE of dalle-pytorch's hyper-parameters and weights.

    Raises:
        ConfigError: a DiscreteVAE that cannot be built here.
    """
    fields = {name: value for name, value in hparams.items() if name in _FIELDS}
    if fields.get("normalization"):  # one release has four numbers, of which the class uses `channels`
        channels = fields.get("channels", 3)
        fields["normalization"] = tuple(tuple(values[:channels]) for values in fields["normalization"])
    ours, others = split(state, PARTS)
    return Checkpoint(
        kind="discrete_vae",
        config=from_dict(DiscreteVAEConfig, fields),
        state=ours,
        dropped=(
            *dropped([name for name in hparams if name not in _FIELDS], {}, prefix="hparams."),
            *dropped(others, {}),
        ),
    )


def is_discrete_vae(state: dict[str, Any]) -> bool:
    """Whether these are the weights of a DiscreteVAE, by their names."""
    return "codebook.weight" in state and "encoder.0.0.weight" in state


def codec_of(raw: dict[str, Any]) -> Checkpoint | None:
    """The image tokenizer whose weights lie under `vae.*` of a DALLE; None where there are none.

    Raises:
        CheckpointError: weights of no image tokenizer known here.
        ConfigError: an image tokenizer that cannot be built here.
    """
    state = under(without_wrapper(tensors(raw["weights"])), VAE)
    if not state:
        return None
    if raw.get("vae_params"):
        return discrete_vae(raw["vae_params"], state)
    if is_openai_dvae(state):
        return openai_dvae_checkpoint(state)
    model = under(state, "model.")
    if is_taming(model):
        return taming_checkpoint(model, None)
    raise CheckpointError(
        f"weights of an unknown image tokenizer ({raw.get('vae_class_name') or next(iter(state))}) under vae.*; "
        "known are DiscreteVAE, OpenAIDiscreteVAE, VQGAN and GumbelVQ"
    )


def codec_kind(raw: dict[str, Any], codec: Checkpoint | None) -> str | None:
    """The kind of image tokenizer a DALLE was trained with, as far as its file says."""
    if codec is not None:
        return codec.kind
    return "discrete_vae" if raw.get("vae_params") else CLASSES.get(str(raw.get("vae_class_name")))
