"""Token shift and its gradient, on its own."""

from __future__ import annotations

import pytest
import torch

from dalle3.nn.positions import TokenShift

TEXT_LEN, GRID = 3, 2


def test_each_position_takes_channels_of_its_neighbours():
    places = torch.arange(1.0, 8)  # three of the caption, four of the picture
    shifted = TokenShift(TEXT_LEN, GRID)(places[None, :, None].expand(1, 7, 4))[0].T.tolist()
    assert shifted == [
        [0, 1, 2, 0, 0, 4, 5],  # from above
        [0, 1, 2, 0, 4, 0, 6],  # from the left
        [1, 2, 3, 4, 5, 6, 7],
        [1, 2, 3, 4, 5, 6, 7],
    ]


@pytest.mark.parametrize("n", range(1, 8))
def test_the_gradient_goes_back_to_where_channels_came_from(n):
    x = torch.randn(2, n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(TokenShift(TEXT_LEN, GRID), (x,))
