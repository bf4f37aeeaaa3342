"""Codes that a DALLE or a decoder in training reads wrongly."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy

from dalle3.data.loader import Batch
from dalle3.errors import ConfigError
from dalle3.train.tasks.dalle import DalleTaskConfig
from dalle3.train.tasks.diffusion import DiffusionTaskConfig
from dalle3.train.tasks.misreading import any_codes, codes_of_elsewhere, misread
from tests.train.conftest import dalle_task, diffusion_task


def test_each_picture_is_misread_by_its_own_part_of_what_is_allowed() -> None:
    codes = torch.full((400, 16, 16), 7)
    rng = torch.Generator().manual_seed(0)
    read = misread(codes, any_codes(codes, 64, rng=rng), 0.5, rng=rng)
    parts = (read != codes).flatten(1).float().mean(dim=1)
    assert parts.max() < 0.6
    assert parts.min() < 0.02
    assert parts.mean() == pytest.approx(0.25 * 63 / 64, abs=0.02)
    assert set(read.flatten().tolist()) == set(range(64))


def test_what_is_misread_is_still_what_has_to_be_predicted() -> None:
    dalle = dalle_task().dalle.eval()
    text, codes = torch.tensor([[1, 2, 3, 0, 0, 0]]), torch.tensor([[[1, 2], [3, 4]]])
    read = torch.tensor([[[1, 6], [3, 4]]])
    logits = dalle(text, read)[:, -4:, -8:]
    expected = cross_entropy(logits[0], codes.flatten()).item()
    assert dalle.loss(text, codes, read)[1]["image"].item() == pytest.approx(expected)


def test_what_is_misread_follows_from_the_generator_alone_so_that_a_resumed_run_misreads_the_same() -> None:
    task = dalle_task()
    task.config = dataclasses.replace(task.config, code_noise=0.9)
    batch = Batch(content=torch.arange(16).reshape(4, 2, 2) % 8, captions=("a red square",) * 4)
    found = [task.prepare(batch, step=0, rng=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(found[0]["read"], found[1]["read"])
    assert not torch.equal(found[0]["read"], found[2]["read"])
    assert all(torch.equal(inputs["codes"], batch.content) for inputs in found)
    loss, _ = task.objective.eval()(**found[0])
    clean, _ = task.objective(found[0]["text"], found[0]["codes"])
    assert loss != clean


def test_part_above_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"code_noise is 1.5; it must be between 0 and 1"):
        DalleTaskConfig(code_noise=1.5)


def test_codes_of_elsewhere_are_as_common_as_in_the_batch() -> None:
    codes = torch.cat([torch.full((2, 16, 16), 3), torch.arange(512).view(2, 16, 16)])
    others = codes_of_elsewhere(codes, rng=torch.Generator().manual_seed(0))
    assert others.shape == codes.shape
    assert (others == 3).float().mean() == pytest.approx(513 / 1024, abs=0.05)
    assert set(others.flatten().tolist()) <= set(range(512))


@torch.no_grad()
def test_a_decoder_sees_what_is_misread_and_has_to_draw_what_is_not() -> None:
    task = diffusion_task()
    task.config = dataclasses.replace(task.config, code_noise=0.9, emb_dropout=0.0)
    codes = torch.arange(16).reshape(4, 2, 2) % 8
    task.codes = lambda images: codes  # type: ignore[method-assign]
    size = task.model.settings.unet.image_size
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    found = [task.condition(images, rng=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(found[0]["codes"], found[1]["codes"])
    assert not torch.equal(found[0]["codes"], found[2]["codes"])
    told = task.model.conditions(task.codec, found[0]["codes"])
    assert all(torch.equal(found[0][name], told[name]) for name in told)
    assert torch.equal(task.condition(images, rng=None)["codes"], codes)


@pytest.mark.parametrize("name", ["code_noise", "emb_dropout"])
def test_part_that_leaves_a_decoder_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is 1.0; it must be at least 0 and below 1"):
        DiffusionTaskConfig(**{name: 1.0})  # type: ignore[arg-type]
