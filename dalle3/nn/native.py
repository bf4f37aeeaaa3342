"""Branches for decoding on a CPU, in C: a position costs little more than the time to read the weights once.

`decode.c` beside this file is compiled on first use; without a C compiler decoding goes through `packed.py`. Weights
are laid out in panels for it: a second copy of them in memory.

Shapes: R rows, I inputs, O outputs, H heads, K width of a head, D model width, F hidden width.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_float, c_int, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle3 import compiled
from dalle3.nn.attention import Attention
from dalle3.nn.cache import KeyValues, Lender, Run
from dalle3.nn.feedforward import GatedFeedForward
from dalle3.nn.packed import Step
from dalle3.nn.positions import GridRotary
from dalle3.nn.transformer import Branch

SOURCE = Path(__file__).with_name("decode.c")
LANES = 16
GAP = 16  # floats behind each row that a product reads, as in decode.c
WIDEST_HEAD = 512
MAX_RUNS = 8
HALF = {torch.float32: 0, torch.bfloat16: 1}


class _Branch(Structure):
    _fields_ = (
        *((name, c_int) for name in ("threads", "rows", "dim", "half", "quarter")),
        ("epsilon", c_float),
        *(
            (name, c_void_p)
            for name in ("norm_weight", "norm_bias", "post_weight", "post_bias", "scale", "own", "shared")
        ),
        ("own_size", c_int),
    )


class _Attention(Structure):
    _fields_ = (
        ("branch", _Branch),
        *((name, c_int) for name in ("heads", "width", "pictures", "caption_length", "size")),
        *((name, c_void_p) for name in ("qkv", "out", "out_bias", "caption_keys", "caption_values", "keys", "values")),
    )


class _FeedForward(Structure):
    _fields_ = (
        ("branch", _Branch),
        ("hidden", c_int),
        *((name, c_void_p) for name in ("up", "gate", "down", "up_bias", "gate_bias", "down_bias")),
    )


class _Shift(Structure):
    _fields_ = (("above", c_void_p), ("left", c_void_p), ("store", c_void_p))


class _Runs(Structure):
    _fields_ = (("count", c_int), *((name, c_int * MAX_RUNS) for name in ("first", "length", "stride")))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled `decode.c`; None where it is switched off or cannot be built."""
    loaded = compiled.library(SOURCE)
    if loaded is None:
        return None
    loaded.attention.argtypes = [POINTER(_Attention), *[c_void_p] * 2, POINTER(_Shift), c_void_p, c_int, POINTER(_Runs)]
    loaded.feed_forward.argtypes = [POINTER(_FeedForward), *[c_void_p] * 2, POINTER(_Shift)]
    loaded.linear.argtypes = [c_int, c_int, *[c_void_p] * 4, *[c_int] * 3]
    return loaded


class NativeEngine:
    """Lays out branches and products for decoding, as `packed.PackedEngine` does."""

    min_rows = 1
    dtype = torch.float32  # of activations, whatever the weights'

    def branch(self, branch: nn.Module) -> NativeAttention | NativeFeedForward:
        """The `Branch` laid out."""
        assert isinstance(branch, Branch)
        if isinstance(branch.fn, Attention):
            return NativeAttention(branch, branch.fn)
        assert isinstance(branch.fn, GatedFeedForward)
        return NativeFeedForward(branch, branch.fn)

    def linear(self, weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
        """(R, O) of (R, I)."""
        outputs, inner = weight.shape
        padding = -outputs % LANES
        weights, biases = panels(F.pad(weight, (0, 0, 0, padding))), F.pad(bias.detach().float(), (0, padding))

        def apply(x: Tensor) -> Tensor:
            x, y = F.pad(x.float(), (0, GAP)), torch.empty(len(x), outputs + padding)
            pointers = [tensor.data_ptr() for tensor in (weights, biases, x, y)]
            _loaded().linear(torch.get_num_threads(), HALF[weights.dtype], *pointers, len(x), inner, outputs + padding)
            return y[:, :outputs]

        return apply


def panels(weight: Tensor) -> Tensor:
    """Weights (O, I) as (O / 16, I, 16)."""
    return weight.detach().unflatten(0, (-1, LANES)).transpose(1, 2).contiguous()


def supports(transformer: nn.Module) -> bool:
    """Whether `transformer` can decode here: its weights are on the CPU, in a known format, widths multiples of 16."""
    fits = all(_fits(branch.fn) for branch in transformer.modules() if isinstance(branch, Branch))
    return fits and library() is not None


def _fits(layer: nn.Module) -> bool:
    weights = [p for p in layer.parameters() if p.ndim == 2]
    sizes = [size for weight in weights for size in weight.shape]
    if isinstance(layer, Attention):
        sizes.append(layer.dim_head)
        if layer.dim_head > WIDEST_HEAD:
            return False
    known = all(weight.device.type == "cpu" and weight.dtype in HALF for weight in weights)
    return known and all(size % LANES == 0 for size in sizes)


class _NativeBranch:
    """What both kinds share: norms and scale in float32, and the memory that C points into."""

    def __init__(self, branch: Branch) -> None:
        norms = [norm if isinstance(norm, nn.LayerNorm) else None for norm in (branch.pre, branch.post)]
        assert norms[0] is not None
        self.epsilon, self.dim = norms[0].eps, norms[0].normalized_shape[0]
        vectors = [vector for norm in norms for vector in ((norm.weight, norm.bias) if norm else (None, None))]
        self.vectors = [None if v is None else v.detach().float().contiguous() for v in (*vectors, branch.scale)]

    def structure(
        self, rows: int, half: int, lender: Lender | None, own: int, shared: int
    ) -> tuple[_Branch, list[Tensor]]:
        """The branch for C with `own` and `shared` floats of scratch, and that scratch."""
        quarter = lender.quarter if lender else 0
        own_size = rows * (self.dim + GAP + 2 * quarter) + own
        threads = torch.get_num_threads()
        scratch = [torch.empty(threads * own_size), torch.empty(shared)]
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in (*self.vectors, *scratch)]
        return _Branch(threads, rows, self.dim, half, quarter, self.epsilon, *pointers, own_size), scratch


class NativeAttention(_NativeBranch):
    """An attention branch."""

    def __init__(self, branch: Branch, attention: Attention) -> None:
        super().__init__(branch)
        assert attention.rotate is None or isinstance(attention.rotate, GridRotary)
        self.heads, self.width = attention.heads, attention.dim_head
        self.table = torch.view_as_real(attention.rotate.table(torch.device("cpu"))) if attention.rotate else None
        self.qkv, self.out = panels(attention.to_qkv.weight), panels(attention.to_out.weight)
        self.out_bias = attention.to_out.bias.detach().float()

    def bind(self, lender: Lender | None, cache: KeyValues | None, rows: int) -> Step:
        """The branch with its memory."""
        assert cache is not None
        return _AttentionStep(*self._structure(lender, cache), self.table, lender, cache)

    def _structure(self, lender: Lender | None, cache: KeyValues) -> tuple[_Attention, list[Tensor]]:
        inner, size = self.heads * self.width, cache.buffer.shape[3]
        length = 0 if cache.caption is None else cache.caption.shape[3]
        shared = cache.rows * (4 * inner + GAP + self.dim)
        branch, scratch = self.structure(cache.rows, HALF[self.qkv.dtype], lender, length + size, shared)
        caption = (None, None) if cache.caption is None else [part.data_ptr() for part in cache.caption]
        weights = [tensor.data_ptr() for tensor in (self.qkv, self.out, self.out_bias)]
        buffers = [part.data_ptr() for part in cache.buffer]
        sizes = (self.heads, self.width, cache.pictures, length, size)
        return _Attention(branch, *sizes, *weights, *caption, *buffers), scratch


class NativeFeedForward(_NativeBranch):
    """A gated feed-forward branch."""

    def __init__(self, branch: Branch, layer: GatedFeedForward) -> None:
        super().__init__(branch)
        self.hidden = layer.down.in_features
        self.weights = [panels(weight) for weight in (*layer.up_gate.weight.chunk(2), layer.down.weight)]
        self.biases = [*layer.up_gate.bias.detach().float().chunk(2), layer.down.bias.detach().float()]

    def bind(self, lender: Lender | None, cache: KeyValues | None, rows: int) -> Step:
        """The branch with its memory; `cache` is attention's."""
        hidden = self.hidden
        branch, scratch = self.structure(
            rows, HALF[self.weights[0].dtype], lender, 0, rows * (2 * (hidden + GAP) + self.dim)
        )
        pointers = [tensor.data_ptr() for tensor in (*self.weights, *self.biases)]
        return _FeedForwardStep(_FeedForward(branch, hidden, *pointers), scratch, lender)


@dataclass
class _AttentionStep:
    structure: _Attention
    scratch: list[Tensor]  # C points into it
    table: Tensor | None
    lender: Lender | None
    cache: KeyValues

    def __call__(self, target: Tensor, source: Tensor, position: int) -> Tensor:
        place, runs = self.cache.next()
        turn = None if self.table is None else self.table[position].data_ptr()
        pointers = (target.data_ptr(), source.data_ptr(), _shift(self.lender), turn)
        _loaded().attention(self.structure, *pointers, place, _runs(runs))
        return target


@dataclass
class _FeedForwardStep:
    structure: _FeedForward
    scratch: list[Tensor]
    lender: Lender | None

    def __call__(self, target: Tensor, source: Tensor, position: int) -> Tensor:
        _loaded().feed_forward(self.structure, target.data_ptr(), source.data_ptr(), _shift(self.lender))
        return target


def _loaded() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None, "ask `supports` first"
    return loaded


def _shift(lender: Lender | None) -> _Shift | None:
    if lender is None:
        return None
    above, left, store = lender.next()
    return _Shift(above.data_ptr(), None if left is None else left.data_ptr(), store.data_ptr())


def _runs(runs: Sequence[Run]) -> _Runs:
    columns = [(c_int * MAX_RUNS)(*column) for column in zip(*runs, strict=True)]
    return _Runs(len(runs), *columns)
