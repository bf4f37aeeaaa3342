"""LPIPS as a distance."""

from __future__ import annotations

import torch

from dalle3.models.lpips import Lpips
from dalle3.runtime import generator


def lpips() -> Lpips:
    found = Lpips()
    for number, weights in enumerate(found.parameters()):
        torch.nn.init.uniform_(weights, 0, 0.02, generator=generator(0, "lpips", number))
    return found


def test_a_picture_is_at_no_distance_from_itself_and_at_some_from_another():
    images = torch.rand(2, 3, 16, 16, generator=generator(0, "pictures")) * 2 - 1
    distance = lpips()
    assert torch.equal(distance(images, images), torch.zeros(2))
    assert (distance(images, images.flip(0)) > 0).all()


def test_gradients_reach_what_is_drawn():
    images = torch.rand(2, 1, 3, 16, 16, generator=generator(0, "pictures")).requires_grad_()
    (gradient,) = torch.autograd.grad(lpips()(images[0], images[1]).sum(), images)
    assert gradient[0].abs().sum() > 0
    assert torch.equal(gradient[1], torch.zeros(1, 3, 16, 16))
