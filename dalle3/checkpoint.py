"""Checkpoints: what any file of weights holds in our terms, and the folder it is kept in.

    my-dalle/ config.json  model.safetensors  [tokenizer file]  [codec/  clip/  decoder/: folders of the same layout]

config.json: {"format": 1, "kind": "dalle", "config": {...}, "step": 120000, "codec": {"kind", "vocab", "grid",
"sha256"}, "tokenizer": {...}, "recommended": {"cond_scale": 3.0}, "source": {"format", "file", "sha256"},
"made_by": {"dalle3", "torch"}}
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

import dalle3
from dalle3 import compiled
from dalle3.config import from_dict, to_dict
from dalle3.errors import CheckpointError, ConfigError, OutputError
from dalle3.files import whole_folder
from dalle3.sampling import Recommended
from dalle3.tokenizers.base import Tokenizer
from diffusion import winograd
from diffusion.errors import DiffusionError

FORMAT = 1
CONFIG, WEIGHTS, CODEC = "config.json", "model.safetensors", "codec"

# kind -> module, configuration, network. A table, so that reading one kind imports only that kind.
KINDS = {
    "dalle": ("dalle3.models.dalle", "DalleConfig", "Dalle"),
    "dalle_lora": ("dalle3.models.dalle_lora", "DalleLoraConfig", "DalleLora"),
    "gumbel_vq": ("dalle3.models.vqgan", "GumbelVQConfig", "GumbelVQ"),
    "vqgan": ("dalle3.models.vqgan", "VQGANConfig", "VQGAN"),
    "discrete_vae": ("dalle3.models.discrete_vae", "DiscreteVAEConfig", "DiscreteVAE"),
    "openai_dvae": ("dalle3.models.openai_dvae", "OpenAIDiscreteVAEConfig", "OpenAIDiscreteVAE"),
    "clip": ("dalle3.models.clip", "ClipConfig", "Clip"),
    "dalle_clip": ("dalle3.models.dalle_clip", "DalleClipConfig", "DalleClip"),
    "unet": ("dalle3.models.decoder", "DecoderConfig", "DiffusionDecoder"),
    "super_res_unet": ("dalle3.models.decoder", "UpsamplerConfig", "Upsampler"),
}
CODECS = ("gumbel_vq", "vqgan", "discrete_vae", "openai_dvae")  # the kinds that are image tokenizers


@dataclass(frozen=True, kw_only=True)
class Source:
    """The file a checkpoint was read from."""

    format: str  # such as "dalle-pytorch", "taming", "dalle3"
    file: str
    sha256: str


@dataclass(kw_only=True)
class Checkpoint:
    """A model as some file holds it: configuration, weights and what the file says about them."""

    kind: str  # a key of KINDS
    config: Any  # that kind's frozen dataclass
    state: dict[str, Tensor]  # names and shapes of our module
    source: Source | None = None
    dropped: tuple[str, ...] = ()  # "key: reason" for each key of the file that was left out
    notes: tuple[str, ...] = ()  # what had to be assumed, as sentences
    codec: Checkpoint | None = None  # the image tokenizer found in the same file
    codec_info: dict[str, Any] | None = (
        None  # {"kind", "vocab", "grid"[, "sha256"]} of the one a DALLE was trained with
    )
    tokenizer: dict[str, Any] | None = None  # as `tokenizers.load.describe`
    training: dict[str, Any] | None = None  # step, epoch, and Adam's "moments" by parameter
    recommended: Recommended = field(default_factory=Recommended)  # of a DALLE: how it draws best

    @property
    def num_parameters(self) -> int:
        """Numbers in the weights."""
        return sum(tensor.numel() for tensor in self.state.values())


def save_checkpoint(
    checkpoint: Checkpoint, folder: Path, *, dtype: torch.dtype | None = None, tokenizer: Tokenizer | None = None
) -> None:
    """Writes a new checkpoint folder, whole or not at all.

    Args:
        dtype: the number format of the weights; None keeps each tensor's own. The codec always keeps its own, or
            the fingerprint by which the DALLE knows it would no longer be true.
        tokenizer: is written beside the weights.
    Raises:
        OutputError: `folder` exists and is not empty, the disk is full, or the place cannot be written.
    """
    with whole_folder(folder) as partial:
        write_checkpoint(checkpoint, partial, dtype=dtype, tokenizer=tokenizer)


def write_checkpoint(
    checkpoint: Checkpoint, folder: Path, *, dtype: torch.dtype | None = None, tokenizer: Tokenizer | None = None
) -> None:
    """As `save_checkpoint`, into a folder that exists: for who adds files before the folder gets its name.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    described = checkpoint.tokenizer
    if tokenizer is not None:
        from dalle3.tokenizers.load import describe

        tokenizer.save(folder)
        described = describe(tokenizer)
    (folder / CONFIG).write_text(json.dumps(_manifest(checkpoint, described), indent=2) + "\n")
    _write_weights(checkpoint.state, folder / WEIGHTS, dtype=dtype)
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors makes it readable to its owner alone
    if checkpoint.codec is not None:
        (folder / CODEC).mkdir()
        write_checkpoint(checkpoint.codec, folder / CODEC)


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` is one that `save_checkpoint` wrote."""
    try:
        return "format" in json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, TypeError):
        return False


def read_folder(folder: Path) -> Checkpoint:
    """The checkpoint `save_checkpoint` wrote; tensors are memory-mapped, so nothing is read before it is used.

    Raises:
        CheckpointError: a file is missing or broken, or was written by a version this one cannot read.
    """
    data = _read_manifest(folder / CONFIG)
    try:
        config = from_dict(config_class(data["kind"]), data["config"])
        source = from_dict(Source, data["source"]) if data.get("source") else None
        recommended = from_dict(Recommended, data.get("recommended", {}))
    except (ConfigError, DiffusionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    return Checkpoint(
        kind=data["kind"],
        config=config,
        state=read_safetensors(folder / WEIGHTS),
        source=source,
        codec=read_folder(folder / CODEC) if (folder / CODEC).is_dir() else None,
        codec_info=data.get("codec"),
        tokenizer=data.get("tokenizer"),
        training={key: data[key] for key in ("step", "epoch", "seed") if key in data} or None,
        recommended=recommended,
    )


def build(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype | None = None) -> nn.Module:
    """The network of a checkpoint with its weights, in evaluation mode.

    Args:
        dtype: of floating-point weights; None keeps each tensor's own. Tables that no file holds keep theirs.
    Raises:
        CheckpointError: the weights are not those of `checkpoint.config`: which, with both shapes.
    """
    winograd.use(compiled.library)
    module = verify(checkpoint)
    state = {name: _cast(tensor, dtype).to(device) for name, tensor in checkpoint.state.items()}
    module.load_state_dict(state, strict=True, assign=True)
    module.to(device)  # the tables that no file holds
    left = [name for name, tensor in _tensors(module) if tensor.is_meta]
    assert not left, f"{left} were given no numbers"
    return module.eval()


def build_codec(checkpoint: Checkpoint, device: torch.device) -> Any:
    """An image tokenizer to read and draw codes with, in float32 whatever the number format of its file.

    So it makes the codes that it makes wherever it is used, on every machine: many processors multiply other formats
    a hundred times slower. It is for networks at rest: `checkpoint_of` knows them by `checkpoint`.
    """
    codec: Any = build(checkpoint, device=device, dtype=torch.float32)
    codec.built_from = checkpoint
    return codec


def checkpoint_of(codec: Any) -> Checkpoint:
    """What `build_codec` built an image tokenizer's network from; of another network, what it is now."""
    now = Checkpoint(kind=codec.kind, config=codec.config, state=codec.state_dict())
    return getattr(codec, "built_from", now)


def verify(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint without memory behind its parameters, checked against the weights.

    Raises:
        CheckpointError: as `build`.
    """
    module = blank(checkpoint.kind, checkpoint.config)
    if misfit := differences(checkpoint.state, module):
        where = checkpoint.source.file if checkpoint.source else "the checkpoint"
        raise CheckpointError(
            f"{where}: the weights are not those of this {checkpoint.kind}; {misfit}. "
            "Weights and configuration come from different models or versions"
        )
    return module


def blank(kind: str, config: Any) -> nn.Module:
    """The network of a kind without memory behind its parameters."""
    with _parameters_on_meta():
        return network_class(kind)(config)


def network_class(kind: str) -> type[Any]:
    """The network of a kind, a key of `KINDS`, made from its configuration."""
    module_name, _, name = KINDS[kind]
    return getattr(importlib.import_module(module_name), name)


def config_class(kind: str) -> type:
    """The configuration of a kind of model.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"a checkpoint of kind {kind!r} is unknown; this version reads {', '.join(KINDS)}")
    module_name, name, _ = KINDS[kind]
    return getattr(importlib.import_module(module_name), name)


def describe_codec(codec: Checkpoint, *, grid: int | None = None) -> dict[str, Any]:
    """What a DALLE's config.json says of its image tokenizer: {"kind", "vocab", "grid", "sha256"}.

    Args:
        grid: codes along a side of the DALLE's pictures; None is that of the tokenizer's own picture size.
    """
    config = codec.config
    side = getattr(config, "image_size", None) or config.resolution
    factor = getattr(config, "factor", 8)
    return {
        "kind": codec.kind,
        "vocab": config.num_tokens,
        "grid": side // factor if grid is None else grid,
        "sha256": fingerprint(codec.state),
    }


def known_codec(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """`describe_codec` of the image tokenizer in a checkpoint, else what the checkpoint says of it."""
    if checkpoint.codec is None:
        return checkpoint.codec_info
    return describe_codec(checkpoint.codec, grid=getattr(checkpoint.config, "image_grid", None))


def fingerprint(state: dict[str, Tensor]) -> str:
    """The SHA-256 of weights: their names, formats, shapes and numbers, whatever file they came in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped; those we stored once under two names under both.

    Raises:
        CheckpointError: the file is missing, cut short or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
            aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}); the copy or download is incomplete, fetch it again"
        ) from None
    return {**state, **{name: state[original] for name, original in aliases.items()}}


def _write_weights(state: dict[str, Tensor], path: Path, *, dtype: torch.dtype | None) -> None:
    once: dict[tuple, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        if tensor.numel() and once.setdefault(place_of(tensor), name) != name:
            aliases[name] = once[place_of(tensor)]
    tensors = {name: _whole(_cast(tensor, dtype)) for name, tensor in state.items() if name not in aliases}
    metadata = {"format": "pt", **({"aliases": json.dumps(aliases)} if aliases else {})}
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # safetensors' own type, whatever the disk said
        raise OutputError(f"{path} was not written: {error}") from error


def place_of(tensor: Tensor) -> tuple:
    """Where a tensor's numbers lie and how they are read: the same for two names of one tensor."""
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()


def _whole(tensor: Tensor) -> Tensor:
    """`tensor`, on the CPU, packed, and alone in its storage."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.nbytes == tensor.untyped_storage().nbytes() else tensor.clone()


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _bytes(tensor: Tensor) -> Any:
    """The numbers as an object with a buffer, not copied where they are packed on the CPU."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _manifest(checkpoint: Checkpoint, tokenizer: dict[str, Any] | None) -> dict[str, Any]:
    training = checkpoint.training or {}
    optional = {
        **{key: training.get(key) for key in ("step", "epoch", "seed")},
        "codec": known_codec(checkpoint),
        "tokenizer": tokenizer,
        "recommended": checkpoint.recommended.stated or None,
        "source": to_dict(checkpoint.source) if checkpoint.source else None,
    }
    return {
        "format": FORMAT,
        "kind": checkpoint.kind,
        "config": to_dict(checkpoint.config),
        **{key: value for key, value in optional.items() if value is not None},
        "made_by": {"dalle3": dalle3.__version__, "torch": torch.__version__.split("+")[0]},
    }


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a checkpoint folder holds {CONFIG} and {WEIGHTS}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(data, dict) or "format" not in data:
        raise CheckpointError(f'{path} is not the {CONFIG} of a dalle3 checkpoint: it has no "format"')
    if data["format"] != FORMAT:
        raise CheckpointError(
            f"{path} is of format {data['format']!r}; this version reads format {FORMAT}: install a newer dalle3"
        )
    return data


def differences(state: dict[str, Tensor], module: nn.Module) -> str:
    """Which tensors of `state` are not those of `module`, in words; empty where all are."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    other = [
        f"{name} is {found[name]}, not {shape}" for name, shape in expected.items() if found.get(name, shape) != shape
    ]
    complaints = [
        *([f"missing: {_some(missing)}"] if missing else []),
        *([f"not of this model: {_some(unknown)}"] if unknown else []),
        *([f"other shapes than the configuration gives: {_some(other)}"] if other else []),
    ]
    return "; ".join(complaints)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules built in this block by this thread have no memory behind their parameters; buffers are real.

    The meta device alone would leave the buffers that no checkpoint holds (masks, position tables) without numbers.
    """
    thread = threading.get_ident()

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> Any:  # None keeps the parameter
        if threading.get_ident() != thread or parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)
    try:
        with _NoNormalDraws():
            yield
    finally:
        handle.remove()


class _NoNormalDraws(TorchFunctionMode):
    """Leaves out normal draws into tensors without memory, for which torch would load its compiler: 2 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "") == "normal_" and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **kwargs)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
