"""Training VQGAN and GumbelVQ."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dalle3.checkpoint import read_folder
from dalle3.data.loader import Batch
from dalle3.errors import ConfigError
from dalle3.models.lpips import Lpips
from dalle3.runtime import generator
from dalle3.train.codebook import CodebookUse
from dalle3.train.loop import LoopConfig
from dalle3.train.optim import OptimConfig
from dalle3.train.tasks.vqgan import GumbelTaskConfig, VqganTaskConfig
from tests.train.conftest import fit
from tests.train.vqgans import gumbel_task, vqgan_task


def inputs(task, *, step: int) -> dict:
    pixels = torch.randint(256, (4, 3, 8, 8), generator=generator(0, "pixels"), dtype=torch.uint8)
    return task.prepare(Batch(content=pixels, captions=("",) * 4), step=step, rng=generator(0, "prepare"))


def gradients(task, *, step: int) -> dict[str, torch.Tensor]:
    task.objective.zero_grad()
    loss, _ = task.objective.train()(**inputs(task, step=step))
    loss.backward()
    return {name: p.grad.clone() for name, p in task.objective.named_parameters()}


def test_the_discriminator_is_pulled_by_its_own_loss_alone():
    task = vqgan_task()
    given = inputs(task, step=2)
    found = gradients(task, step=2)
    task.objective.zero_grad()
    _, metrics = task.objective(**given)
    redrawn, _, _ = task.model(given["images"])
    real, fake = task.objective.discriminator(given["images"] * 2 - 1), task.objective.discriminator(redrawn.detach())
    verdict = ((1 - real).relu().mean() + (1 + fake).relu().mean()) / 2
    verdict.backward()
    torch.testing.assert_close(metrics["disc_loss"], verdict.detach())
    for name, weights in task.objective.discriminator.named_parameters():
        torch.testing.assert_close(found[f"discriminator.{name}"], weights.grad)


def test_at_the_last_layer_the_discriminator_weighs_as_much_as_asked():
    whole, none = (vqgan_task(VqganTaskConfig(disc_start=0, disc_weight=weight)) for weight in (0.5, 0.0))
    name = "model.decoder.conv_out.weight"
    redrawing = gradients(none, step=0)[name]
    contest = gradients(whole, step=0)[name] - redrawing
    torch.testing.assert_close(contest.norm(), 0.5 * redrawing.norm(), rtol=1e-2, atol=0)


def test_before_its_start_the_discriminator_does_nothing_but_has_gradients():
    task = vqgan_task()
    found = gradients(task, step=1)
    assert all((found[name] == 0).all() for name in found if name.startswith("discriminator."))
    _, metrics = task.objective(**inputs(task, step=1))
    assert "disc_loss" not in metrics
    assert {"reconstruction_loss", "codebook_loss", "psnr", "codebook_use", "perplexity"} <= metrics.keys()


@pytest.mark.parametrize("kind", [vqgan_task, gumbel_task])
def test_four_pictures_are_learnt_against_the_discriminator(kind):
    task, losses = kind(), []
    optimizer = torch.optim.AdamW(task.objective.train().parameters(), lr=1e-3)
    for step in range(40):
        loss, metrics = task.objective(**inputs(task, step=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(metrics["reconstruction_loss"]))
    assert losses[-1] < 0.5 * losses[0]


def test_previews_say_what_is_left_of_the_pictures(tmp_path):
    steps = LoopConfig(steps=1, batch_size=2, sample_every_n_steps=1)
    fit(vqgan_task(), tmp_path, loop=steps, optim=OptimConfig())
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"preview_psnr", "preview_codebook_use", "preview_perplexity"} <= row.keys()
    assert (tmp_path / "samples" / "step-00000001.png").is_file()


def test_the_checkpoint_holds_the_tokenizer_and_keeps_the_discriminator_apart(tmp_path):
    task = gumbel_task()
    steps = LoopConfig(steps=2, batch_size=2, sample_every_n_steps=0)
    folder = fit(task, tmp_path, loop=steps, optim=OptimConfig()).checkpoint
    found = read_folder(folder)
    assert (found.kind, found.state.keys()) == ("gumbel_vq", task.model.state_dict().keys())
    beside = load_file(folder / "train" / "beside.safetensors")
    expected = task.objective.discriminator.state_dict()
    assert {name.removeprefix("discriminator.") for name in beside if not name.startswith("use.")} == expected.keys()


def test_the_temperature_falls_as_a_cosine():
    config = GumbelTaskConfig(starting_temp=1.0, temp_min=0.5, temp_steps=100)
    assert [round(config.temperature(step), 6) for step in (0, 50, 100, 1000)] == [1.0, 0.75, 0.5, 0.5]
    with pytest.raises(ConfigError, match=r"goes from 0.5 to 1.0 in 10 steps; it must end above 0"):
        GumbelTaskConfig(starting_temp=0.5, temp_min=1.0, temp_steps=10)


def test_entries_that_no_code_used_are_put_upon_latents():
    use, codebook = CodebookUse(6, revive_every=2), torch.nn.Parameter(torch.zeros(6, 3))
    latents = torch.randn(1, 3, 2, 2, generator=generator(0, "latents"))
    rows = latents[0].flatten(1).T
    use.note(torch.tensor([[[0, 1], [1, 0]]]), latents)
    assert use.revive(codebook, rng=generator(0, "revive")) == []  # one pass is too few to tell
    use.note(torch.tensor([[[5, 5], [5, 5]]]), latents)
    assert use.metrics()["codebook_use"] == 0.5
    ((moved, change),) = use.revive(codebook, rng=generator(0, "revive"))
    revived = change(codebook.detach())
    assert moved is codebook
    assert not revived[[0, 1, 5]].any()
    assert all((rows == entry).all(1).any() for entry in revived[2:5])
    assert len(revived[2:5].unique(dim=0)) == 3
    assert use.revive(codebook, rng=generator(0, "revive")) == []


def test_reviving_moves_the_codebook_of_a_run_and_nothing_without_it(tmp_path):
    steps, still = LoopConfig(steps=2, batch_size=2, sample_every_n_steps=0), OptimConfig(learning_rate=0.0)
    before = vqgan_task().model.codebook
    for every in (0, 1):
        task = vqgan_task(VqganTaskConfig(disc_start=9, revive_every=every))
        folder = fit(task, tmp_path / str(every), loop=steps, optim=still).checkpoint
        after = load_file(folder / "model.safetensors")["quantize.embedding.weight"]
        assert torch.equal(before, after) == (every == 0)


def test_a_run_that_did_not_watch_its_codebook_yet_continues(tmp_path):
    def steps(number: int) -> LoopConfig:
        return LoopConfig(steps=number, batch_size=2, sample_every_n_steps=0)

    beside = fit(vqgan_task(), tmp_path, loop=steps(1), optim=OptimConfig()).checkpoint / "train" / "beside.safetensors"
    save_file({name: kept for name, kept in load_file(beside).items() if not name.startswith("use.")}, beside)
    assert fit(vqgan_task(), tmp_path, resume="auto", loop=steps(2), optim=OptimConfig()).finished


def test_lpips_is_part_of_the_loss_and_not_of_what_is_saved():
    perceptual = Lpips()
    for number, weights in enumerate(perceptual.parameters()):
        torch.nn.init.uniform_(weights, 0, 0.02, generator=generator(0, "lpips", number))
    task = vqgan_task(VqganTaskConfig(disc_start=9), perceptual=perceptual)
    without = vqgan_task(VqganTaskConfig(disc_start=9))
    loss, metrics = task.objective(**{**inputs(task, step=0), "images": torch.rand(1, 3, 16, 16)})
    assert metrics["perceptual_loss"] > 0
    loss.backward()
    assert task.objective.state_dict().keys() == without.objective.state_dict().keys()
    assert all(weights.grad is None for weights in perceptual.parameters())
