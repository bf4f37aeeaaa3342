"""Optimizers by name, and what the learning rate does over time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dalle3.errors import ConfigError
from dalle3.train.muon import hidden_matrices
from dalle3.train.optim import Average, OptimConfig, learning_rate, make_optimizer, optimizers
from tests.train.conftest import TASKS, dalle_task, fit
from tests.train.test_loop import loop, measured, same_weights


class Model(nn.Module):
    """An embedding, a hidden layer and a head, as language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.body, self.head = nn.Embedding(4, 8), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.head(self.body(self.emb(ids))), ids.roll(1))


def objective() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Model())


def steps(made: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    for _ in range(number):
        made(torch.arange(4)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", optimizers())
def test_each_optimizer_trains_and_goes_on_from_its_stored_state(name, tmp_path):
    config = OptimConfig(optimizer=name, learning_rate=1e-2, weight_decay=0.1)
    whole, first, second = objective(), objective(), objective()
    before = whole(torch.arange(4)).detach()
    steps(whole, make_optimizer(whole, config), 6)
    assert whole(torch.arange(4)) < before
    optimizer = make_optimizer(first, config)
    steps(first, optimizer, 3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    second.load_state_dict(first.state_dict())
    again = make_optimizer(second, config)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    steps(second, again, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_muon_takes_matrices_inside_the_model_and_adamw_the_rest():
    made = objective()
    assert [id(matrix) for matrix in hidden_matrices(made)] == [id(made[0].body[0].weight)]
    task = dalle_task()
    inside = {id(parameter) for name, parameter in task.dalle.transformer.named_parameters() if parameter.ndim == 2}
    assert {id(matrix) for matrix in hidden_matrices(task.objective)} == inside
    groups = make_optimizer(task.objective, OptimConfig(optimizer="Muon")).param_groups
    every = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(every) == sorted(id(parameter) for parameter in task.objective.parameters())


def test_both_parts_of_muon_follow_the_learning_rate_also_after_loading():
    made = objective()
    optimizer = make_optimizer(made, OptimConfig(optimizer="Muon"))
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [parameter.clone() for parameter in made.parameters()]
    steps(made, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))


def test_a_run_with_muon_resumes_bit_for_bit(tmp_path):
    optim = OptimConfig(optimizer="Muon", learning_rate=1e-2, ema_decay=0.9)
    fit(dalle_task(), tmp_path / "run", loop=loop(save_every_n_steps=3), optim=optim)
    (tmp_path / "run" / "step-00000006").rename(tmp_path / "kept")
    resumed = fit(dalle_task(), tmp_path / "run", resume="auto", loop=loop(), optim=optim)
    assert same_weights(tmp_path / "kept", resumed.checkpoint)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "Adamw"}, r"optimizer is 'Adamw'; of torch.optim it may be ASGD, .*, AdamW, .*, SGD"),
        ({"optimizer": "LBFGS"}, "it may be"),
        ({"optimizer": "SGD", "optimizer_args": "momentum"}, "optimizer_args has 'momentum'; SGD takes dampening, "),
        ({"optimizer": "SGD", "optimizer_args": "lr=1"}, "optimizer_args has 'lr=1'; SGD takes dampening, "),
        ({"optimizer": "SGD", "optimizer_args": "nesterov=True"}, "optimizer SGD: Nesterov momentum requires"),
        ({"optimizer": "AdamW", "betas": (0.9, 2.0)}, "optimizer AdamW: Invalid beta parameter at index 1: 2.0"),
    ],
)
def test_what_an_optimizer_does_not_take_is_said(given, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(objective(), OptimConfig(**given))


def test_muon_refuses_a_model_without_matrices():
    with pytest.raises(ConfigError, match="this model has none, take AdamW"):
        make_optimizer(TASKS["vae"]().objective, OptimConfig(optimizer="Muon"))


def test_further_arguments_reach_the_optimizer():
    config = OptimConfig(optimizer="SGD", optimizer_args="momentum=0.9, nesterov=True")
    defaults = make_optimizer(objective(), config).defaults
    assert (defaults["momentum"], defaults["nesterov"]) == (0.9, True)


def test_biases_and_norms_are_not_decayed():
    groups = make_optimizer(objective(), OptimConfig(weight_decay=0.1)).param_groups
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [(0.1, {2}), (0.0, {1})]


def test_the_learning_rate_warms_up_and_follows_half_a_cosine():
    config = OptimConfig(learning_rate=1.0, warmup_steps=4, lr_schedule="cosine", final_lr_ratio=0.1)
    rates = [learning_rate(step, 104, config) for step in range(105)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    for step, part in ((4, 1.0), (29, (1 + math.sqrt(0.5)) / 2), (54, 0.5), (104, 0.0)):
        assert rates[step] == pytest.approx(0.1 + 0.9 * part)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_a_constant_learning_rate_stays():
    config = OptimConfig(learning_rate=1.0, warmup_steps=2)
    assert [learning_rate(step, 5, config) for step in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]


def test_the_schedule_is_what_the_optimizer_gets(tmp_path):
    optim = OptimConfig(learning_rate=1.0, optimizer="SGD", warmup_steps=2, lr_schedule="cosine", clip_grad_norm=1e-3)
    fit(TASKS["autoencoder"](), tmp_path, loop=loop(), optim=optim)
    rates = [row["learning_rate"] for row in measured(tmp_path)]
    assert rates == [learning_rate(step, 6, optim) for step in range(6)]
    stored = torch.load(tmp_path / "step-00000006" / "train" / "optimizer.pt", weights_only=True)
    assert {group["lr"] for group in stored["param_groups"]} == {rates[-1]}


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def test_gradients_are_cut_to_the_norm_asked_for(tmp_path):
    def moved(clip: float) -> tuple[float, float]:
        task = TASKS["autoencoder"]()
        before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
        optim = OptimConfig(learning_rate=1.0, optimizer="SGD", clip_grad_norm=clip)
        after = weights(fit(task, tmp_path / str(clip), loop=loop(steps=1), optim=optim).checkpoint)
        distance = math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in after))
        return distance, measured(tmp_path / str(clip))[0]["grad_norm"]

    free, norm = moved(0.0)
    assert free == pytest.approx(norm, rel=1e-4)
    assert moved(norm / 2) == pytest.approx((norm / 2, norm), rel=1e-4)
    assert moved(norm * 2)[0] == pytest.approx(norm, rel=1e-4)


def test_the_average_follows_the_weights():
    made = objective()
    average = Average(made, 0.9)
    first = {name: tensor.clone() for name, tensor in average.state.items()}
    moved = {name: tensor + 1 for name, tensor in first.items()}
    average.update(moved, 1)  # early on it forgets faster: 2 of 11 parts are kept
    torch.testing.assert_close(average.state["0.emb.weight"], first["0.emb.weight"] + 9 / 11)
    average.update(moved, 10_000)
    torch.testing.assert_close(average.state["0.emb.weight"], first["0.emb.weight"] + 9 / 11 + 0.1 * 2 / 11)
