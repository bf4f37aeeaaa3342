"""Which format a file is of, told from what it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dalle3.convert.dalle_pytorch_clip import is_dalle_pytorch_clip
from dalle3.convert.dalle_pytorch_vae import is_discrete_vae
from dalle3.convert.deepspeed import is_model_states
from dalle3.convert.guided_diffusion import describe_unet, is_guided_diffusion
from dalle3.convert.keys import is_state_dict
from dalle3.convert.openai_dvae import half_of
from dalle3.convert.taming import is_taming
from dalle3.errors import CheckpointError


def _has(*keys: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(key in value for key in keys)


def _state(test: Callable[[dict[str, Any]], bool]) -> Callable[[Any], bool]:
    return lambda value: is_state_dict(value) and test(value)


# The first that fits: format, test on what the file holds.
_TESTS: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("dalle-pytorch", _has("hparams", "vae_params", "weights")),
    ("dalle-pytorch-vae", _has("hparams", "weights")),
    ("deepspeed", is_model_states),
    ("taming", lambda value: _has("state_dict")(value) and is_taming(value["state_dict"])),
    ("taming", _state(is_taming)),
    ("openai-dvae", lambda value: half_of(value) is not None),
    ("openai-clip", _has("visual.conv1.weight", "token_embedding.weight")),
    ("dalle-pytorch-clip", _state(is_dalle_pytorch_clip)),
    ("dalle-weights", _has("text_emb.weight", "to_logits.1.weight")),
    ("discrete-vae-weights", _state(is_discrete_vae)),
    ("guided-diffusion", _state(is_guided_diffusion)),
    ("optimizer", _has("state", "param_groups")),
    ("min-dalle", _state(lambda s: "layers.0.glu.fc0.weight" in s and "embed_tokens.weight" in s)),
    ("ru-dalle", _state(lambda s: "text_embeddings.weight" in s and "image_row_embeddings.weight" in s)),
    ("dalle2-pytorch", _has("model", "version", "ema")),
    ("lightning", _has("state_dict", "pytorch-lightning_version")),
    ("state dict", is_state_dict),
)
READABLE = {
    "dalle-pytorch": "a DALLE of dalle-pytorch or the DALL-3 fork",
    "dalle-pytorch-vae": "a DiscreteVAE of dalle-pytorch",
    "dalle-pytorch-clip": "a CLIP of dalle-pytorch",
    "dalle-weights": "the weights of a DALLE of dalle-pytorch",
    "deepspeed": "a DALLE of dalle-pytorch, as DeepSpeed saved it",
    "taming": "an image tokenizer of taming-transformers",
    "openai-dvae": "a half of OpenAI's dVAE",
    "openai-clip": "a CLIP of OpenAI",
    "guided-diffusion": "a UNet of guided-diffusion",
}
_OTHERS = {
    "discrete-vae-weights": "a DiscreteVAE without its sizes; give the vae.pt of train_vae.py, which holds both",
    "optimizer": "the state of an optimizer, not a model",
    "min-dalle": "a part of min-dalle, which is not supported yet",
    "ru-dalle": "a ru-dalle, which is not supported yet",
    "dalle2-pytorch": "a model of DALLE2-pytorch, which is not supported yet",
    "lightning": "a Lightning checkpoint of a model that is neither VQGAN nor GumbelVQ",
    "state dict": "the weights of a model that is not known here",
}


def recognise(value: Any) -> str | None:
    """The name of the format of what a file holds; None if no format fits."""
    return next((name for name, fits in _TESTS if fits(value)), None)


def say(value: Any) -> str:
    """What a file holds, as the end of a sentence."""
    name = recognise(value)
    if name == "guided-diffusion":
        return f"a UNet of guided-diffusion ({describe_unet(value)}), a diffusion decoder"
    return {**READABLE, **_OTHERS}.get(name or "", f"{_content(value)}, no model known here")


def unreadable(path: Path, value: Any) -> CheckpointError:
    """The error for a file whose content is recognised, or not, but cannot be read as a model."""
    return CheckpointError(f"{path} holds {say(value)}; `dalle3 inspect {path}` tells more")


def _content(value: Any) -> str:
    if isinstance(value, dict):
        keys = ", ".join(map(str, list(value)[:5]))
        return f"a dictionary with the keys {keys}{' and more' if len(value) > 5 else ''}" if value else "nothing"
    return f"a {type(value).__name__}"
