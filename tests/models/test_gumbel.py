"""Gumbel noise and the softmax that samples with it."""

import pytest
import torch
import torch.nn.functional as F

from dalle3.models.gumbel import gumbel_noise, gumbel_softmax, mix


@pytest.mark.parametrize("hard", [False, True])
def test_one_seed_gives_torchs_sample(hard):
    logits = torch.randn(2, 5, 3, 3)
    noise = gumbel_noise(logits, torch.Generator().manual_seed(4))
    torch.manual_seed(4)
    expected = F.gumbel_softmax(logits, tau=0.7, dim=1, hard=hard)
    torch.testing.assert_close(gumbel_softmax(logits, noise, temperature=0.7, hard=hard), expected)


def test_given_noise_is_used_as_it_is():
    logits = torch.randn(2, 5, 3, 3)
    assert torch.equal(gumbel_noise(logits, logits + 1), logits + 1)


def test_hard_samples_have_the_gradient_of_soft_ones():
    logits, noise, direction = torch.randn(3, 2, 5, 3, 3)
    gradients = []
    for hard in (False, True):
        leaf = logits.clone().requires_grad_()
        (gumbel_softmax(leaf, noise, temperature=0.7, hard=hard) * direction).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_samples_follow_the_logits():
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    logits = probabilities.log().view(1, 3, 1, 1).expand(1, 3, 100, 100)
    noise = gumbel_noise(logits, torch.Generator().manual_seed(0))
    drawn = gumbel_softmax(logits, noise, temperature=1.0, hard=True).mean(dim=(0, 2, 3))
    torch.testing.assert_close(drawn, probabilities, atol=0.02, rtol=0)


def test_a_one_hot_mixture_is_one_entry():
    codebook = torch.randn(5, 4)
    weights = F.one_hot(torch.tensor([[[3, 1]]]), 5).permute(0, 3, 1, 2)
    assert torch.equal(mix(weights, codebook)[0, :, 0, 0], codebook[3])
