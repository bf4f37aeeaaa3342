"""Attention in blocks is attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle3.nn import blocks
from dalle3.nn.attention import Attention
from dalle3.nn.positions import ATTENTION_TYPES, attention_mask

TEXT_LEN, GRID = 7, 6
N = TEXT_LEN + GRID * GRID - 1


@pytest.fixture
def qkv() -> Tensor:
    return torch.randn(3, N, 3, 2, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()


def reference(qkv: Tensor, mask: Tensor) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def mask_of(kind: str) -> Tensor:
    return attention_mask(kind, TEXT_LEN, GRID)[:N, :N]


@pytest.mark.parametrize("kind", ATTENTION_TYPES)
def test_values_and_gradients_are_those_of_the_whole_product(qkv, kind):
    mask = mask_of(kind)
    ours, theirs = blocks.attend(qkv, blocks.plan(mask, 5)), reference(qkv, mask)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad((y * weights).sum(), qkv)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


def test_a_batch_larger_than_the_cache_is_computed_in_parts(qkv, monkeypatch):
    mask = mask_of("full")
    whole = blocks.attend(qkv, blocks.plan(mask, N))
    monkeypatch.setattr(blocks, "CACHED", 1)
    torch.testing.assert_close(blocks.attend(qkv, blocks.plan(mask, N)), whole, rtol=0, atol=1e-6)


def test_every_row_is_in_one_block():
    for kind in ATTENTION_TYPES:
        rows = torch.cat([torch.arange(N)[block.rows] for block in blocks.plan(mask_of(kind), 5)])
        assert rows.sort().values.tolist() == list(range(N))


def test_a_column_of_the_picture_is_a_block_that_leaves_out_the_others():
    mask = attention_mask("axial_col", GRID, GRID)
    captions, *columns = blocks.plan(mask, GRID)
    assert captions.keys == slice(0, GRID)
    for column, block in enumerate(columns):
        positions = torch.arange(len(mask))
        assert positions[block.rows].tolist() == list(range(GRID + column, len(mask), GRID))
        assert positions[block.keys].tolist() == [*range(GRID), *positions[block.rows].tolist()]


def test_training_in_bfloat16_goes_by_blocks_to_the_same_result():
    torch.manual_seed(0)
    layer, x = Attention(16, 2, 8, causal=True), torch.randn(2, N, 16)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert "_AttendBackward" in _names(found)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)


def _names(y: Tensor) -> set[str]:
    """The operations that made `y`."""
    names, nodes = set(), [y.grad_fn]
    while nodes:
        if (node := nodes.pop()) is not None:
            names.add(type(node).__name__)
            nodes += [parent for parent, _ in node.next_functions]
    return names
