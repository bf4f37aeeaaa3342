"""OpenAI's discrete VAE: `encoder.pkl` and `decoder.pkl`, each a whole module of the `dall_e` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from dalle3.checkpoint import Checkpoint
from dalle3.convert.keys import is_state_dict, tensors
from dalle3.convert.pickles import Inert, load_pickle, module_class, module_state
from dalle3.errors import CheckpointError
from dalle3.models.openai_dvae import OpenAIDiscreteVAEConfig

CLASSES = {"dall_e.encoder.Encoder": "enc", "dall_e.decoder.Decoder": "dec"}
FILES = {"enc": "encoder.pkl", "dec": "decoder.pkl"}


def half_of(value: Any) -> str | None:
    """Which half of the dVAE an unpickled value is, "enc" or "dec"; None where it is neither."""
    if (name := module_class(value)) in CLASSES:
        return CLASSES[name]
    if not is_state_dict(value) or "blocks.input.w" not in value:
        return None
    return "enc" if value["blocks.input.w"].shape[-1] > 1 else "dec"  # the encoder looks at 7x7 pixels first


def is_openai_dvae(state: dict[str, Any]) -> bool:
    """Whether these are the weights of both halves, by their names."""
    return "enc.blocks.input.w" in state and "dec.blocks.input.w" in state


def read_openai_dvae(folder: Path, found: dict[str, Any] | None = None) -> Checkpoint:
    """The dVAE of the two files in `folder`.

    Args:
        found: halves that were unpickled already, under "enc" or "dec".
    Raises:
        CheckpointError: a file is missing or not what its name says.
    """
    state: dict[str, Tensor] = {}
    for half, file in FILES.items():
        value = (found or {}).get(half)
        if value is None:
            value = _load(folder / file, half)
        weights = module_state(value) if isinstance(value, Inert) else tensors(value)
        state.update({f"{half}.{name}": tensor for name, tensor in weights.items()})
    return openai_dvae_checkpoint(state)


def openai_dvae_checkpoint(state: dict[str, Tensor]) -> Checkpoint:
    """The dVAE of weights named `enc.*` and `dec.*`; every size is read from their shapes."""
    blocks = {name.split(".")[3] for name in state if name.startswith("enc.blocks.group_1.block_")}
    config = OpenAIDiscreteVAEConfig(
        num_tokens=state["enc.blocks.output.conv.w"].shape[0],
        n_hid=state["enc.blocks.input.w"].shape[0],
        n_init=state["dec.blocks.input.w"].shape[0],
        n_blk_per_group=len(blocks),
    )
    return Checkpoint(kind="openai_dvae", config=config, state=state)


def _load(path: Path, half: str) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; OpenAI's dVAE is encoder.pkl and decoder.pkl in one folder")
    value = load_pickle(path)
    if half_of(value) != half:
        raise CheckpointError(f"{path} does not hold the {FILES[half].removesuffix('.pkl')} of OpenAI's dVAE")
    return value
