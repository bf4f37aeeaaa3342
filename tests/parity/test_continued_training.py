"""A run of DALL-3's train_dalle.py goes on: its file's Adam state is the one its losses say.

`ckpt_fork_dalle.pt` was saved after three steps of Adam (lr 3e-4, gradients clipped to 0.5) whose losses it notes.
Adam's moments tell what the last step added to the weights, so the steps can be undone one after another: at the
weights before each, our loss must be the noted one. A moment given to the wrong parameter would show at once.
"""

from __future__ import annotations

import pytest
import torch

from dalle3.checkpoint import build
from dalle3.convert import read
from dalle3.models.dalle import Dalle
from dalle3.train.optim import OptimConfig, make_optimizer
from dalle3.train.parallel import SingleDevice
from tests.golden import FOLDER

PATH = FOLDER / "ckpt_fork_dalle.pt"
RATE, BETAS, EPS, CLIP = 3e-4, (0.9, 0.999), 1e-8, 0.5
CPU = torch.device("cpu")


@pytest.fixture
def noted() -> dict:
    return torch.load(PATH, weights_only=True)["_expect"]


@pytest.fixture
def dalle() -> Dalle:
    model = build(read(PATH), device=CPU)
    assert isinstance(model, Dalle)
    return model.requires_grad_(True)


def moments(dalle: Dalle) -> dict[str, dict[str, torch.Tensor]]:
    found = read(PATH).training["moments"]
    assert found.keys() == dict(dalle.named_parameters()).keys()
    return found


def loss(dalle: Dalle, noted: dict) -> torch.Tensor:
    inputs = noted["inputs"]
    return dalle.loss(inputs["text"], inputs["image"])[0]


@torch.no_grad()
def undo_step(dalle: Dalle, remembered: dict) -> None:
    """Takes Adam's last step back."""
    for name, parameter in dalle.named_parameters():
        state = remembered[name]
        step = int(state["step"])
        mean = state["exp_avg"] / (1 - BETAS[0] ** step)
        scale = (state["exp_avg_sq"] / (1 - BETAS[1] ** step)).sqrt() + EPS
        parameter += RATE * mean / scale


@torch.no_grad()
def forget_gradient(dalle: Dalle, remembered: dict) -> None:
    """Takes this gradient, of the last step, out of the moments."""
    torch.nn.utils.clip_grad_norm_(dalle.parameters(), CLIP)
    for name, parameter in dalle.named_parameters():
        state, gradient = remembered[name], parameter.grad
        state["exp_avg"] = (state["exp_avg"] - (1 - BETAS[0]) * gradient) / BETAS[0]
        squared = (state["exp_avg_sq"] - (1 - BETAS[1]) * gradient**2) / BETAS[1]
        state["exp_avg_sq"] = squared.clamp(min=0)
        state["step"] = state["step"] - 1


def test_undoing_the_last_step_gives_the_loss_noted_before_it(dalle, noted):
    undo_step(dalle, moments(dalle))
    assert loss(dalle, noted).item() == pytest.approx(noted["losses_of_3_steps"][2], rel=1e-6)


def test_undoing_two_steps_gives_the_loss_before_both(dalle, noted):
    remembered = moments(dalle)
    undo_step(dalle, remembered)
    loss(dalle, noted).backward()
    forget_gradient(dalle, remembered)
    undo_step(dalle, remembered)
    assert loss(dalle, noted).item() == pytest.approx(noted["losses_of_3_steps"][1], rel=1e-5)


def test_the_moments_reach_the_optimizer_and_the_loss_goes_on_falling(dalle, noted):
    optimizer = make_optimizer(dalle, OptimConfig(optimizer="Adam", learning_rate=RATE, betas=BETAS))
    parallel, remembered = SingleDevice(CPU), moments(dalle)
    parallel.wrap(dalle, optimizer)
    parallel.adopt([(parameter, remembered[name]) for name, parameter in dalle.named_parameters()])
    before = loss(dalle, noted)
    parallel.backward(before)
    parallel.step(learning_rate=RATE, clip=CLIP)
    falls = torch.tensor([*noted["losses_of_3_steps"], before.item(), loss(dalle, noted).item()]).diff()
    assert falls == pytest.approx(falls[:1].expand(4), rel=0.02)  # each step as large as the first, none as from zero
    assert all(int(state["step"]) == 4 for state in optimizer.state.values())
