"""Distances of pictures, and the use of codes, on cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from dalle3.evaluate.closeness import Closeness, CodeUse


def test_psnr_is_of_all_pixels_together_and_its_mean_of_each_picture():
    closeness = Closeness()
    originals = torch.zeros(2, 3, 4, 4)
    drawn = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])  # 20 dB and 40 dB
    closeness.add(drawn[:1], originals[:1])
    closeness.add(drawn[1:], originals[1:])
    together = -10 * math.log10((0.01 + 0.0001) / 2)
    assert closeness.figures() == pytest.approx({"psnr": together, "psnr_mean": 30}, rel=1e-5)


def test_perfect_pictures_are_at_a_hundred_decibels():
    closeness = Closeness()
    closeness.add(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2))
    assert closeness.figures() == pytest.approx({"psnr": 100, "psnr_mean": 100})


def test_codes_used_alike_have_their_number_as_perplexity():
    use = CodeUse(8)
    use.add(torch.tensor([[[0, 1], [2, 3]]]))
    use.add(torch.tensor([[[3, 2], [1, 0]]]))
    assert use.figures() == pytest.approx({"codebook_use": 0.5, "perplexity": 4})


def test_one_code_alone_has_the_perplexity_of_one():
    use = CodeUse(4)
    use.add(torch.zeros(3, 2, 2, dtype=torch.long))
    assert use.figures() == pytest.approx({"codebook_use": 0.25, "perplexity": 1})
