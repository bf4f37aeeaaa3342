"""Foreign files as checkpoints of ours: `read(path)`. What is read, and how it is recognised: docs/FORMATS.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle3.checkpoint import Checkpoint, Source, is_checkpoint, read_folder, read_safetensors, verify
from dalle3.convert.dalle_pytorch_clip import from_dalle_pytorch_clip
from dalle3.convert.dalle_pytorch_file import dalle_checkpoint
from dalle3.convert.dalle_pytorch_vae import vae_checkpoint
from dalle3.convert.deepspeed import (
    add_hparams,
    from_model_states,
    is_deepspeed,
    is_index,
    read_deepspeed,
    read_weights,
)
from dalle3.convert.detect import recognise, unreadable
from dalle3.convert.guided_diffusion import Layout, LayoutError, unet_checkpoint
from dalle3.convert.hugging_face_clip import from_hugging_face, is_hugging_face, weights_file
from dalle3.convert.keys import tensors
from dalle3.convert.openai_dvae import FILES as DVAE_FILES
from dalle3.convert.openai_dvae import half_of, read_openai_dvae
from dalle3.convert.pickles import load_pickle, load_torchscript
from dalle3.convert.signature import looks_like, not_weights
from dalle3.convert.taming import find_yaml, read_yaml, taming_checkpoint
from dalle3.errors import CheckpointError, ConfigError
from dalle3.files import sha256
from dalle3.models.clip import from_openai
from dalle3.shipped import located

_LIGHTNING_COUNTS = {"global_step": "step", "epoch": "epoch"}


@dataclass(frozen=True, kw_only=True)
class _File:
    """Where a value was read from, and what was given beside it."""

    path: Path
    config_path: Path | None
    layout: Layout


def read(path: Path | str, *, config_path: Path | str | None = None, layout: Layout | None = None) -> Checkpoint:
    """The model a file or folder holds, of any format in docs/FORMATS.md, told from its content.

    Nothing in the file is run. The weights are checked against the configuration.

    Args:
        path: of the file or folder; or the name of a model of the package, or of its part, such as picto/clip.
        config_path: the yaml of a taming model, if it does not lie beside the file under the same name.
        layout: what the tensors of a UNet of guided-diffusion do not tell; other files have no use for it.
    Raises:
        CheckpointError: a file that is missing, broken, unsafe, of another kind, or not supported.
    """
    path = located(Path(path))
    config_path = Path(config_path) if config_path else None
    if looks_like(path) == "folder":
        return _read_folder(_File(path=path, config_path=config_path, layout=layout or Layout()))
    return from_value(read_value(path), path, config_path=config_path, layout=layout)


def from_value(value: Any, path: Path, *, config_path: Path | None = None, layout: Layout | None = None) -> Checkpoint:
    """As `read`, of what `read_value` found in the file at `path`."""
    file = _File(path=path, config_path=config_path, layout=layout or Layout())
    name = recognise(value)
    if name is None or name not in _READERS:
        raise unreadable(path, value)
    return _finish(path, name, lambda: _READERS[name](value, file))


def read_value(path: Path) -> Any:
    """What a single file holds, before anything is made of it: mostly dictionaries and tensors.

    Raises:
        CheckpointError: a file that is missing, broken, unsafe, or not of weights.
    """
    kind = looks_like(path)
    if kind in ("torch", "pickle"):
        return load_pickle(path)
    if kind == "torchscript":
        return load_torchscript(path)
    if kind == "safetensors":
        return read_safetensors(path)
    if kind == "json" and is_index(path):
        return read_weights(path)
    raise not_weights(path, kind)


def _read_folder(file: _File) -> Checkpoint:
    folder = file.path
    if is_checkpoint(folder):
        return read_folder(folder)
    if is_deepspeed(folder):
        raw, weights = read_deepspeed(folder)
        return _finish(weights, "deepspeed", lambda: dalle_checkpoint(raw))
    if any((folder / name).is_file() for name in DVAE_FILES.values()):
        return _finish(folder / DVAE_FILES["enc"], "openai-dvae", lambda: read_openai_dvae(folder))
    if is_hugging_face(folder):
        return _finish(weights_file(folder), "hugging-face-clip", lambda: _clip(*from_hugging_face(folder)))
    if len(found := sorted(folder.glob("*.ckpt"))) == 1:
        return read(found[0], config_path=file.config_path, layout=file.layout)
    raise CheckpointError(
        f"{folder} holds none of config.json of dalle3, a DeepSpeed checkpoint, encoder.pkl and decoder.pkl, "
        "a CLIP of Hugging Face, or one .ckpt; give the file itself"
    )


def _finish(path: Path, name: str, convert: Callable[[], Checkpoint]) -> Checkpoint:
    """What `convert` returns, checked and with its source; its errors say which file they are about."""
    try:
        checkpoint = convert()
        for part in (checkpoint, checkpoint.codec):
            if part is not None:
                verify(part)
    except LayoutError as error:
        raise LayoutError(f"{path} holds {error}", kind=error.kind) from None
    except (CheckpointError, ConfigError) as error:
        message = str(error)
        raise CheckpointError(message if str(path.parent) in message else f"{path}: {message}") from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{path} looks like {name}, but its content is not as that format has it ({error!r:.100})"
        ) from error
    checkpoint.source = Source(format=name, file=path.name, sha256=sha256(path))
    if checkpoint.codec is not None:
        checkpoint.codec.source = checkpoint.source
    return checkpoint


def _clip(config: Any, state: dict[str, Any]) -> Checkpoint:
    return Checkpoint(kind="clip", config=config, state=state)


def _dalle_clip(value: Any, file: _File) -> Checkpoint:
    config, state = from_dalle_pytorch_clip(tensors(value))
    return Checkpoint(kind="dalle_clip", config=config, state=state)


def _deepspeed(value: Any, file: _File) -> Checkpoint:
    return dalle_checkpoint(from_model_states(file.path, value))


def _weights(value: Any, file: _File) -> Checkpoint:
    return dalle_checkpoint(add_hparams(file.path, tensors(value)))


def _taming(value: Any, file: _File) -> Checkpoint:
    yaml = file.config_path or find_yaml(file.path)
    checkpoint = taming_checkpoint(tensors(value.get("state_dict", value)), read_yaml(yaml) if yaml else None)
    if "state_dict" in value:
        read_here = {"state_dict", *_LIGHTNING_COUNTS}
        checkpoint.dropped += tuple(f"{key}: Lightning's, of the training" for key in value if key not in read_here)
        counts = {ours: value.get(theirs) for theirs, ours in _LIGHTNING_COUNTS.items()}
        checkpoint.training = {key: count for key, count in counts.items() if isinstance(count, int)} or None
    return checkpoint


def _openai_dvae(value: Any, file: _File) -> Checkpoint:
    return read_openai_dvae(file.path.parent, {str(half_of(value)): value})


_READERS: dict[str, Callable[[Any, _File], Checkpoint]] = {
    "dalle-pytorch": lambda value, file: dalle_checkpoint(value),
    "dalle-pytorch-vae": lambda value, file: vae_checkpoint(value),
    "dalle-pytorch-clip": _dalle_clip,
    "dalle-weights": _weights,
    "deepspeed": _deepspeed,
    "taming": _taming,
    "openai-dvae": _openai_dvae,
    "openai-clip": lambda value, file: _clip(*from_openai(tensors(value))),
    "guided-diffusion": lambda value, file: unet_checkpoint(tensors(value), path=file.path, layout=file.layout),
}
