"""The middle of a gated feed-forward is the same in C, to what bfloat16 can hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle3.nn import geglu as module
from dalle3.nn.geglu import geglu

native = pytest.mark.skipif(module._library() is None, reason="no C compiler")


def plain(up_gate: Tensor) -> Tensor:
    up, gate = up_gate.chunk(2, dim=-1)
    return up * F.gelu(gate)


def values(*shape: int) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 3).bfloat16()


@native
@pytest.mark.parametrize("shape", [(2, 5, 38), (3, 64), (2,), (0, 8)])
def test_values_and_gradients_are_the_exact_ones_rounded_once(shape):
    x = values(*shape)
    weights = torch.randn(*shape[:-1], shape[-1] // 2, generator=torch.Generator().manual_seed(1)).bfloat16()
    narrow, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    ours, exact = geglu(narrow), plain(wide)
    assert "Geglu" in type(ours.grad_fn).__name__  # it went by C
    torch.testing.assert_close(ours, exact.bfloat16(), rtol=2**-7, atol=1e-6)
    (found,), (wanted,) = torch.autograd.grad(ours, narrow, weights), torch.autograd.grad(exact, wide, weights.double())
    torch.testing.assert_close(found, wanted.bfloat16(), rtol=2**-7, atol=1e-5)


@native
def test_what_is_rounded_is_off_by_half_a_unit_at_most():
    x = values(1000, 2)
    exact = plain(x.double())
    assert ((geglu(x).double() - exact).abs() <= exact.abs() * 2**-8 * 1.01 + 1e-6).all()


@native
def test_what_is_not_a_number_stays_so():
    x = torch.tensor([[1.0, torch.nan], [torch.nan, 1.0], [2.0, torch.inf]], dtype=torch.bfloat16)
    assert geglu(x)[:, 0].isnan().tolist() == [True, True, False]
    assert geglu(x)[2, 0] == torch.inf


@native
def test_a_gradient_that_is_one_number_spread_out_will_do():
    x = values(4, 6).requires_grad_()
    (found,) = torch.autograd.grad(geglu(x).sum(), x)
    (wanted,) = torch.autograd.grad(plain(x).sum(), x)
    torch.testing.assert_close(found, wanted, rtol=2**-6, atol=1e-2)


@pytest.mark.parametrize("x", [values(3, 8).float(), values(8, 3).mT, values(3, 8)])
def test_without_c_or_for_other_numbers_it_is_pytorchs(x, monkeypatch):
    monkeypatch.setattr(module, "_library", lambda: None)
    assert torch.equal(geglu(x), plain(x))


def test_float32_is_pytorchs():
    x = values(3, 8).float()
    assert torch.equal(geglu(x), plain(x))
