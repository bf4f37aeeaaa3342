"""Finding the right caption, by features one can see through."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dalle3.evaluate.judge import Retrieval, best_of


def axes(number: int) -> torch.Tensor:
    """Features that have nothing in common."""
    return torch.eye(number, dtype=torch.float64)


def captions(number: int) -> list[str]:
    return [f"caption {index}" for index in range(number)]


def test_pictures_that_are_their_captions_find_them():
    retrieval = Retrieval(captions(20), axes(20), among=10, seed=0)
    assert (retrieval.precision(axes(20)), retrieval.score(axes(20)), retrieval.among) == (1, 1, 10)


def test_pictures_of_other_captions_find_those():
    retrieval = Retrieval(captions(6), axes(6), among=6, seed=0)
    half = axes(6)[[0, 1, 2, 4, 5, 3]]
    assert retrieval.precision(half) == pytest.approx(0.5)


def test_pictures_that_are_all_alike_find_nothing():
    alike = torch.full((8, 8), 8**-0.5, dtype=torch.float64)
    assert Retrieval(captions(8), axes(8), among=4, seed=0).precision(alike) == 0


def test_a_blind_model_is_right_once_in_as_many_captions_as_there_are_to_choose_from():
    rng = torch.Generator().manual_seed(0)
    text, pictures = (F.normalize(torch.randn(2000, 32, generator=rng, dtype=torch.float64), dim=1) for _ in range(2))
    assert Retrieval(captions(2000), text, among=10, seed=0).precision(pictures) == pytest.approx(0.1, abs=0.02)


def test_equal_captions_do_not_compete():
    twice = ["a cat", "a dog", "a cat", "a dog"]
    features = axes(2)[[0, 1, 0, 1]]
    retrieval = Retrieval(twice, features, among=100, seed=0)
    assert (retrieval.precision(features), retrieval.among) == (1, 2)


def test_the_wrong_captions_depend_on_the_seed_alone():
    def others(seed: int) -> list[list[int]]:
        return [found.tolist() for found in Retrieval(captions(30), axes(30), among=5, seed=seed).others]

    assert others(1) == others(1) != others(2)
    assert all(own not in found and len(set(found)) == 4 for own, found in enumerate(others(1)))


def test_the_best_of_some_is_the_nearest_to_the_caption():
    pictures = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]], dtype=torch.float64)
    caption = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert [int(best_of(pictures, caption, number)) for number in (1, 2, 3)] == [0, 1, 2]
