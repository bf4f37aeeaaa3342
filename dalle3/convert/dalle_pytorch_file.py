"""A whole file of dalle-pytorch's DALLE: the transformer, its image tokenizer, and what is said of the training."""

from __future__ import annotations

from typing import Any

from dalle3.checkpoint import Checkpoint
from dalle3.convert.dalle_pytorch import adam_moments, dalle_from_dalle_pytorch
from dalle3.convert.dalle_pytorch_vae import VAE, codec_kind, codec_of
from dalle3.convert.keys import dropped, tensors, without_wrapper
from dalle3.errors import CheckpointError
from dalle3.models.dalle import DalleConfig

_READ = ("hparams", "vae_params", "weights", "version", "vae_class_name", "epoch")
_REASONS = {
    "opt_state": "the optimizer's moments, with which only `train_dalle.py --dalle_path` can continue",
    "scheduler_state": "of a run of the original",
}


def dalle_checkpoint(raw: dict[str, Any]) -> Checkpoint:
    """The DALLE that `train_dalle.py` of any era saved, {"hparams", "vae_params", "weights", ...}.

    Raises:
        CheckpointError: the weights are elsewhere, or of another model.
        ConfigError: a model that cannot be run here.
    """
    if not isinstance(raw["weights"], dict):
        raise CheckpointError(
            f"its weights are not in this file: {str(raw['weights'])[:120]}; give the folder it is in"
        )
    weights = without_wrapper(tensors(raw["weights"]))
    version = raw.get("version")
    config, state, left_out = dalle_from_dalle_pytorch(
        {name: tensor for name, tensor in weights.items() if not name.startswith(VAE)},
        raw["hparams"],
        version=None if version is None else str(version),
    )
    codec = codec_of({**raw, "weights": weights})
    of_codec = tuple(f"{VAE}model.{line}" for line in codec.dropped) if codec else ()
    moments = adam_moments(weights, raw.get("opt_state"), state)
    of_file = dropped([key for key in raw if key not in _READ], _REASONS)
    training = {"epoch": raw["epoch"]} if isinstance(raw.get("epoch"), int) else {}
    return Checkpoint(
        kind="dalle",
        config=config,
        state=state,
        dropped=(*(f"{key}: {reason}" for key, reason in left_out.items()), *of_codec, *of_file),
        codec=codec,
        codec_info=_codec_info(config, codec_kind(raw, codec)),
        training={**training, **({"moments": moments} if moments else {})} or None,
    )


def _codec_info(config: DalleConfig, kind: str | None) -> dict[str, Any]:
    """Without a fingerprint: these files may hold a copy of the image tokenizer in half precision."""
    return {**({"kind": kind} if kind else {}), "vocab": config.num_image_tokens, "grid": config.image_grid}
