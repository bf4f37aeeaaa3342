"""The loss without the logits is the loss with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle3.nn import cross_entropy
from dalle3.nn.cross_entropy import linear_cross_entropy

ROWS, WIDTH, CLASSES = 13, 8, 11

Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def inputs() -> Inputs:
    """x, weight and bias."""
    rng = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=rng) for shape in ((ROWS, WIDTH), (CLASSES, WIDTH), (CLASSES,)))
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@pytest.fixture
def targets() -> Tensor:
    return torch.randint(0, CLASSES, (ROWS,), generator=torch.Generator().manual_seed(1))


def reference(x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight, bias), targets)


@pytest.mark.parametrize("at_once", [1 << 20, 3 * CLASSES, 1])
def test_loss_and_gradients_are_those_of_the_logits(inputs: Inputs, targets, at_once, monkeypatch):
    monkeypatch.setitem(cross_entropy.AT_ONCE, "cpu", at_once)
    losses = [linear_cross_entropy(*inputs, targets), reference(*inputs, targets)]
    torch.testing.assert_close(*losses)
    ours, theirs = (torch.autograd.grad(3 * loss, inputs) for loss in losses)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_gradients_reach_only_what_wants_them(inputs: Inputs, targets):
    x, weight, bias = inputs
    linear_cross_entropy(x, weight.detach(), bias.detach(), targets).backward()
    assert x.grad is not None


def test_products_are_in_the_format_of_autocast_and_sums_in_float32(inputs: Inputs, targets):
    expected = reference(*inputs, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(*inputs, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
    assert not torch.equal(loss, expected)


def test_a_logit_far_behind_gives_a_finite_loss():
    x, weight = torch.ones(1, 1), torch.tensor([[0.0], [300.0]])
    assert linear_cross_entropy(x, weight, torch.zeros(2), torch.tensor([0])) == 300
