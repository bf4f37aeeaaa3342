"""Reads what PyTorch pickled, without running any of it. The only place of this project that unpickles.

A pickle is a program: it names classes and functions and calls them. Here each name it may use is one of
three things: a plain container of Python, a rebuilder of tensors written in this file, or an inert stand-in
that keeps what it is given and does nothing. Any other name ends the reading with an error that states it.
"""

from __future__ import annotations

import collections
import contextlib
import io
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

from dalle3.convert.signature import looks_like, not_weights
from dalle3.convert.storages import Archive, Storage, archive_storages, fill_storages, legacy_storages, rebuild
from dalle3.errors import CheckpointError

# Packages whose objects are known to lie beside weights; each becomes a stand-in.
INERT_PREFIXES = (
    "accelerate.",
    "apex.",
    "argparse.Namespace",
    "collections.",
    "dall_e.",
    "dalle_pytorch.",
    "datetime.",
    "deepspeed.",
    "easydict.",
    "enum.",
    "lightning.",
    "lightning_fabric.",
    "numpy.",
    "omegaconf.",
    "packaging.",
    "pathlib.",
    "pytorch_lightning.",
    "taming.",
    "torch.amp.",
    "torch.cuda.amp.",
    "torch.distributed.",
    "torch.nn.",
    "torch.optim.",
    "torch.torch_version.",
    "torchmetrics.",
    "types.SimpleNamespace",
    "typing.",
    "yacs.",
)
DEEPEST = 64  # modules inside modules; a pickle can hold one that contains itself
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError),
    *(RuntimeError, SystemError, TypeError, ValueError),  # RecursionError is a RuntimeError
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error),
)
Resolve = Callable[[str], Any]
T = TypeVar("T")


class Inert:
    """Stands in for an object of a foreign class: keeps the state it is given and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update((str(key), value) for key, value in part.items())

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


class ForbiddenGlobalError(CheckpointError):
    """A pickle that asks for a class or function nobody needs to store weights."""


def load_pickle(path: Path) -> Any:
    """The object that `torch.save` wrote to `path`, tensors on the CPU, memory-mapped where possible.

    Objects of foreign classes come as `Inert`.

    Raises:
        CheckpointError: no such file, not a PyTorch file, broken, or it names a class or function that is
            not allowed; the message says which.
    """
    kind = looks_like(path)
    if kind not in ("torch", "pickle"):
        raise not_weights(path, kind, wanted="a file written by torch.save")
    return _explained(path, lambda: _read(path, kind))


def load_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive by name; its code is not even read.

    Raises:
        CheckpointError: as `load_pickle`.
    """
    if (kind := looks_like(path)) != "torchscript":
        raise not_weights(path, kind, wanted="a TorchScript archive")
    return _explained(path, lambda: dict(_attributes(_read_archive(path, _allowed(("__torch__.",))))))


def load_arrays(path: Path) -> dict[str, Tensor]:
    """The NumPy arrays in a pickle of dictionaries inside dictionaries, as flax writes them, by their joined keys.

    Raises:
        CheckpointError: as `load_pickle`.
    """

    def read() -> dict[str, Tensor]:
        allowed, makers = _allowed(), ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
        kinds = {"numpy.ndarray": _Array, **dict.fromkeys(makers, lambda *args: _Array())}
        with path.open("rb") as file:
            return dict(_leaves(_Reader(file, lambda name: kinds.get(name) or allowed(name), Inert).load()))

    if (kind := looks_like(path)) != "pickle":
        raise not_weights(path, kind, wanted="a pickle of NumPy arrays")
    return _explained(path, read)


def module_class(value: Any) -> str | None:
    """The class a stand-in replaces, such as "dall_e.encoder.Encoder"; None for anything else."""
    return f"{type(value).__module__}.{type(value).__qualname__}" if isinstance(value, Inert) else None


def module_state(module: Inert) -> dict[str, Tensor]:
    """The parameters and buffers of an nn.Module that was pickled whole, by name."""
    return dict(_parameters(module))


def list_globals(path: Path) -> list[str]:
    """The classes and functions a pickle names, sorted, found without giving it any of them.

    Of a file that breaks off, the names before the break.
    """
    names: set[str] = set()
    kinds: dict[str, type] = {}

    def record(name: str) -> type:
        names.add(name)
        return kinds.setdefault(name, _stand_in(name))

    with contextlib.suppress(CheckpointError, *_BROKEN):
        read = _read_legacy if looks_like(path) == "pickle" else _read_archive
        read(path, record, tensors=False)
    return sorted(names)


class _Reader(pickle.Unpickler):
    """An unpickler that takes every name from `resolve` and every storage from `storage`."""

    def __init__(self, file: IO[bytes], resolve: Resolve, storage: Callable[[Any], Any]) -> None:
        super().__init__(file, encoding="latin1")
        self._resolve, self._storage = resolve, storage

    def find_class(self, module: str, name: str) -> Any:
        return self._resolve(f"{_PYTHON_2.get(module, module)}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return self._storage(pid)


def _read(path: Path, kind: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about pickle protocols, which is no news to a user
        with contextlib.suppress(pickle.UnpicklingError):  # a name torch does not know: read it with stand-ins
            return torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "torch")
    return (_read_archive if kind == "torch" else _read_legacy)(path, _allowed())


def _no_storage(pid: Any) -> Any:
    return pid[1] if pid[0] == "module" else Inert()


def _read_archive(path: Path, resolve: Resolve, *, tensors: bool = True) -> Any:
    archive = Archive(path)
    storage = archive_storages(archive) if tensors else _no_storage
    return _Reader(io.BytesIO(archive.read("data.pkl")), resolve, storage).load()


def _read_legacy(path: Path, resolve: Resolve, *, tensors: bool = True) -> Any:
    """The object of a file in the format before zip: three headers, the pickle, the storages' keys, their bytes."""
    with path.open("rb") as file:
        storages: dict[str, Storage] = {}
        storage = legacy_storages(storages, size=path.stat().st_size) if tensors else _no_storage
        if _Reader(file, resolve, Inert).load() != LEGACY_MAGIC:
            raise CheckpointError(f"{path} is a pickle that torch.save did not write; expected a file of weights")
        for _ in ("protocol", "system"):
            _Reader(file, resolve, Inert).load()
        value = _Reader(file, resolve, storage).load()
        if tensors:
            fill_storages(file, _Reader(file, resolve, Inert).load(), storages)
    return value


def _allowed(more: tuple[str, ...] = ()) -> Resolve:
    """A function from a name to what a pickle may have under it, made afresh for each file.

    Afresh because a pickle can write attributes onto whatever it is handed.
    """
    known = _known()

    def resolve(name: str) -> Any:
        if name not in known:
            if not name.startswith((*INERT_PREFIXES, *more)):
                raise ForbiddenGlobalError(
                    f"refused: it names {name}, which no file of weights needs and which could run code; "
                    "nothing was run. Get the weights from a source you trust, as safetensors or a plain state dict"
                )
            known[name] = _stand_in(name)
        return known[name]

    return resolve


def _stand_in(name: str) -> type[Inert]:
    module, _, short = name.rpartition(".")
    return type(short, (Inert,), {"__module__": module})


def _known() -> dict[str, Any]:
    plain = (set, frozenset, dict, list, tuple, int, float, str, bool, complex)
    return {
        **{f"builtins.{kind.__name__}": kind for kind in plain},
        **{str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
        **{f"torch.{name}": dtype for name, dtype in _storage_types()},
        **{f"torch.storage.{name}": dtype for name, dtype in _storage_types()},
        "builtins.bytearray": lambda *args: _bytes(*args),
        "_codecs.encode": lambda *args: _bytes(*args),
        "collections.OrderedDict": collections.OrderedDict,
        "collections.defaultdict": lambda *args: {},
        "collections.Counter": lambda *args: dict(*args),
        "copyreg._reconstructor": lambda kind, base, state: kind.__new__(kind),
        "numpy.dtype": type("dtype", (_Dtype,), {}),
        "numpy.core.multiarray.scalar": lambda *args: _scalar(*args),
        "numpy._core.multiarray.scalar": lambda *args: _scalar(*args),
        "torch.Size": torch.Size,
        "torch.device": lambda *args: ":".join(map(str, args)),
        "torch._utils._rebuild_tensor": lambda *args: rebuild(*args),
        "torch._utils._rebuild_tensor_v2": lambda *args: rebuild(*args[:4]),
        "torch._utils._rebuild_tensor_v3": lambda storage, offset, shape, stride, *rest: rebuild(
            storage, offset, shape, stride, rest[2]
        ),
        "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
        "torch._utils._rebuild_parameter_with_state": lambda tensor, *rest: tensor,
        **{f"torch.jit._pickle.{name}": lambda value, *rest: value for name in _TAGS},
    }


_TAGS = (
    *("restore_type_tag", "build_intlist", "build_tensorlist", "build_doublelist", "build_boollist"),
    "build_tensor_from_id",
)


def _storage_types() -> Iterator[tuple[str, torch.dtype]]:
    for dtype, name in (
        *((torch.float64, "Double"), (torch.float32, "Float"), (torch.float16, "Half"), (torch.bfloat16, "BFloat16")),
        *((torch.int64, "Long"), (torch.int32, "Int"), (torch.int16, "Short"), (torch.int8, "Char")),
        *((torch.uint8, "Byte"), (torch.bool, "Bool"), (torch.complex64, "ComplexFloat"), (torch.uint8, "Untyped")),
    ):
        yield f"{name}Storage", dtype


def _bytes(text: Any = b"", encoding: str = "latin1") -> bytes:
    return text if isinstance(text, bytes) else str(text).encode("latin1" if encoding != "utf-8" else "utf-8")


class _Dtype(Inert):
    """Stands in for numpy.dtype; `code` is such as "f8", `order` "<" or ">"."""

    code: str = ""
    order: str = "<"

    def __init__(self, code: Any = "", *rest: Any) -> None:
        self.code = str(code)

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """The Python number of a pickled NumPy scalar."""
    import numpy as np

    if not isinstance(dtype, _Dtype) or not re.fullmatch(r"[biuf]\d", dtype.code):
        return Inert()
    return np.frombuffer(_bytes(data), dtype=dtype.order + dtype.code)[0].item()


class _Array(Inert):
    """Stands in for numpy.ndarray."""

    tensor: Tensor

    def __setstate__(self, state: Any) -> None:
        import numpy as np

        _, shape, dtype, column_major, data = state
        if not isinstance(dtype, _Dtype) or not re.fullmatch(r"[biuf]\d", dtype.code):
            raise ValueError("an array that holds no numbers")
        array = np.frombuffer(_bytes(data), dtype=dtype.order + dtype.code)
        # A copy in this machine's order: torch takes no other, and what it wraps must be writable.
        ordered = array.reshape(shape, order="F" if column_major else "C").astype(dtype.code)
        self.tensor = torch.from_numpy(np.ascontiguousarray(ordered))


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, _Array):
        yield prefix.removesuffix("."), value.tensor
    elif isinstance(value, dict) and prefix.count(".") < DEEPEST:
        for name, item in value.items():
            yield from _leaves(item, f"{prefix}{name}.")


def _attributes(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Inert) and prefix.count(".") < DEEPEST:
            yield from _attributes(value, f"{prefix}{name}.")


def _parameters(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    own = vars(module)
    for name, value in {**own.get("_parameters", {}), **own.get("_buffers", {})}.items():
        if isinstance(value, Tensor):
            yield prefix + name, value.detach()
    for name, child in own.get("_modules", {}).items():
        if isinstance(child, Inert) and prefix.count(".") < DEEPEST:
            yield from _parameters(child, f"{prefix}{name}.")


def _explained(path: Path, read: Callable[[], T]) -> T:
    """What `read` returns; whatever a broken file provokes becomes one line."""
    try:
        return read()
    except ForbiddenGlobalError as error:
        raise ForbiddenGlobalError(f"{path} {error}") from None
    except CheckpointError:
        raise
    except _BROKEN as error:
        reason = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
        raise CheckpointError(
            f"{path} is a PyTorch file that cannot be read to its end ({reason}); "
            "the copy or download is incomplete or damaged, fetch it again"
        ) from None
