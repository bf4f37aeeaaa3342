"""DALLE-pytorch trained under DeepSpeed: a folder, `auxiliary.pt` beside the weights of one or many processes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle3.checkpoint import read_safetensors
from dalle3.convert.keys import is_state_dict, tensors, without_wrapper
from dalle3.convert.pickles import load_pickle
from dalle3.errors import CheckpointError

AUXILIARY, LATEST = "auxiliary.pt", "latest"
MODEL_STATES = "mp_rank_00_model_states.pt"
CONSOLIDATED = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    *("pytorch_model/pytorch_model.bin", "pytorch_model/pytorch_model.bin.index.json"),
)


def is_deepspeed(folder: Path) -> bool:
    """Whether `folder` is one that DeepSpeed saved into, or the folder of one step in it."""
    return any((folder / name).is_file() for name in (AUXILIARY, LATEST, MODEL_STATES)) or bool(_shards(folder))


def is_model_states(value: Any) -> bool:
    """Whether an unpickled value is what DeepSpeed keeps in `*_model_states.pt`."""
    return isinstance(value, dict) and isinstance(value.get("module"), dict)


def read_deepspeed(folder: Path) -> tuple[dict[str, Any], Path]:
    """The {"hparams", "weights", ...} of a folder, as dalle-pytorch's `.pt` has them, and the file of the weights.

    Raises:
        CheckpointError: weights split over processes (ZeRO stage 3) that nobody has joined, or a missing file.
    """
    for name in CONSOLIDATED:
        if (path := folder / name).is_file():
            return add_hparams(path, read_weights(path)), path
    step = _step_folder(folder)
    path = step / MODEL_STATES
    if _shards(step):
        raise _split(folder)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, though DeepSpeed keeps the weights there; copy the whole folder")
    if (step / MODEL_STATES.replace("00", "01")).is_file():
        raise CheckpointError(f"{step}: the model is split over several devices (mp_rank_01), which is not supported")
    return from_model_states(path, load_pickle(path)), path


def from_model_states(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """As `read_deepspeed`, of the `*_model_states.pt` that was unpickled from `path`."""
    weights = without_wrapper(tensors(value["module"]))
    if _is_split(weights):
        raise _split(path.parent)
    return add_hparams(path, weights, inside=value)


def add_hparams(path: Path, weights: dict[str, Tensor], *, inside: dict[str, Any] | None = None) -> dict[str, Any]:
    """`weights` with the hyper-parameters that dalle-pytorch keeps in `auxiliary.pt`.

    Args:
        path: the file of the weights; `auxiliary.pt` is looked for beside it and in the two folders above.
        inside: what the file itself says beside its weights.
    Raises:
        CheckpointError: there are none.
    """
    known = next((p / AUXILIARY for p in path.parents[:3] if (p / AUXILIARY).is_file()), None)
    beside = {key: value for key, value in (inside or {}).items() if key != "module"}
    found = load_pickle(known) if known is not None else {}
    found = {**beside, **found} if isinstance(found, dict) else {}
    if "hparams" not in found:
        raise CheckpointError(
            f"{path} holds the weights of a DALLE without its hyper-parameters; "
            f"put the {AUXILIARY} that DeepSpeed's folder came with beside it"
        )
    return {**found, "weights": without_wrapper(weights)}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a `.bin`, a `.safetensors`, or the `.index.json` of several of them.

    Raises:
        CheckpointError: a file is missing, broken or holds something else.
    """
    if path.suffix == ".json":
        return _read_index(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    value = load_pickle(path)
    if not is_state_dict(value):
        raise CheckpointError(f"{path} is not a dictionary of tensors; expected the weights of a model")
    return tensors(value)


def is_index(path: Path) -> bool:
    """Whether `path` is the table of contents of weights in several files."""
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8"))["weight_map"], dict)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _read_index(path: Path) -> dict[str, Tensor]:
    if not is_index(path):
        raise CheckpointError(f'{path} has no "weight_map"; expected the index of weights in several files')
    places: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    state: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file:
            raise CheckpointError(f"{path} names the file {file!r} outside its folder")
        part = read_weights(path.with_name(file))
        state.update({name: tensor for name, tensor in part.items() if places.get(name) == file})
    if missing := [name for name in places if name not in state]:
        raise CheckpointError(
            f"{path} names {missing[0]}, which is not in {places[missing[0]]}; copy all its files again"
        )
    return state


def _step_folder(folder: Path) -> Path:
    """The folder of the newest step: what `latest` says, else the highest number, else `folder` itself."""
    if (folder / MODEL_STATES).is_file() or _shards(folder):
        return folder
    if (folder / LATEST).is_file():
        name = (folder / LATEST).read_text(encoding="utf-8", errors="replace").strip()
        if Path(name).name == name and (folder / name).is_dir():
            return folder / name
    steps = [(int(n[1]), p) for p in folder.iterdir() if (n := re.fullmatch(r"global_step(\d+)", p.name))]
    if not steps:
        raise CheckpointError(f"{folder} holds no global_step folder with weights; copy the whole DeepSpeed folder")
    return max(steps)[1]


def _shards(folder: Path) -> list[Path]:
    """The files in which ZeRO stage 3 keeps each process's share of the model."""
    return sorted(folder.glob("zero_pp_rank_*_model_states.pt"))


def _is_split(weights: dict[str, Tensor]) -> bool:
    """Whether the tensors are the empty stand-ins of ZeRO stage 3."""
    matrices = [tensor for name, tensor in weights.items() if name.endswith(("emb.weight", "to_logits.1.weight"))]
    return bool(matrices) and all(tensor.numel() <= 1 for tensor in matrices)


def _split(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder}: DeepSpeed ZeRO stage 3 split the weights over its processes; join them in the folder of `latest` "
        "with `python zero_to_fp32.py . .` (DeepSpeed wrote that script there), then give the folder again"
    )
