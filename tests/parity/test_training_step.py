"""A training step is the reference's: through the task, from captions and codes to loss, gradients and Adam's step."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.func import functional_call

from dalle3.checkpoint import build
from dalle3.convert import dalle_pytorch, read
from dalle3.data.loader import Batch
from dalle3.models.dalle import Dalle
from dalle3.models.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle3.runtime import generator
from dalle3.tokenizers.huggingface import HuggingFace
from dalle3.train.optim import OptimConfig, make_optimizer
from dalle3.train.parallel import SingleDevice
from dalle3.train.tasks.dalle import DalleTask, DalleTaskConfig
from tests.golden import FOLDER, golden, relative_error
from tests.parity.test_dalle import FILES, load

CPU = torch.device("cpu")
RATE, CLIP = 3e-4, 0.5  # of the run that wrote ckpt_fork_dalle.pt


def words(number: int) -> HuggingFace:
    """A tokenizer that reads w17 as 17."""
    whole = Tokenizer(models.WordLevel({f"w{index}": index for index in range(number)}, unk_token="w0"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    return HuggingFace(whole)


def make_task(dalle: Dalle) -> DalleTask:
    config = DiscreteVAEConfig(num_tokens=dalle.config.num_image_tokens, codebook_dim=8, num_layers=1, hidden_dim=8)
    told = DalleTaskConfig(caption_dropout=0.0)
    return DalleTask(dalle, DiscreteVAE(config), words(dalle.config.num_text_tokens), told)


def batch(inputs: dict[str, Tensor]) -> Batch:
    """The reference's inputs as the data set would hold them: captions, and codes in rows."""
    side = round(inputs["image"].shape[1] ** 0.5)
    captions = tuple(" ".join(f"w{number}" for number in row if number) for row in inputs["text"].tolist())
    return Batch(content=inputs["image"].unflatten(1, (side, side)), captions=captions)


@pytest.mark.parametrize("name", FILES)
def test_loss_and_gradients_through_the_task_are_the_originals(name):
    reference = golden(name)
    task, parallel = make_task(load(reference)), SingleDevice(CPU)
    parallel.wrap(task.objective, make_optimizer(task.objective, OptimConfig()))
    task.objective.train()
    inputs = task.prepare(batch(reference["inputs"]), step=0, rng=generator(0))
    assert torch.equal(inputs["text"], reference["inputs"]["text"])
    loss, _ = parallel.forward(inputs)
    parallel.backward(loss)
    assert loss.item() == pytest.approx(reference["outputs"]["loss"], rel=1e-5)
    found = {name: cast(Tensor, weights.grad) for name, weights in task.dalle.named_parameters()}
    kept = {key for key in reference["outputs"]["grad_norms"] if not dalle_pytorch._why_dropped(key)}
    assert {dalle_pytorch._our_name(key) for key in kept} == found.keys()
    for key, norm in reference["outputs"]["grad_norms"].items():
        if key in kept:
            assert found[dalle_pytorch._our_name(key)].norm().item() == pytest.approx(norm, rel=1e-5), key
    for key, expected in reference["outputs"]["grads"].items():
        if key in kept:
            ours = dalle_pytorch._our_name(key)
            assert relative_error(found[ours], dalle_pytorch._our_shape(ours, expected)) < 1e-5, key


class TheirAdam:
    """The fork's own weights and torch's Adam with the state its file holds, numbered as the file numbers them."""

    def __init__(self) -> None:
        self.raw = torch.load(FOLDER / "ckpt_fork_dalle.pt", weights_only=True)
        trained = [
            key for key in self.raw["weights"] if not (key.startswith("vae.") or dalle_pytorch._why_dropped(key))
        ]
        self.weights = {key: self.raw["weights"][key].double().requires_grad_(True) for key in trained}
        self.optimizer = torch.optim.Adam(self.weights.values())
        self.optimizer.load_state_dict(self.raw["opt_state"])

    def ours(self) -> dict[str, Tensor]:
        """The weights in our names, through which gradients flow back to theirs."""
        named = {dalle_pytorch._our_name(key): weights for key, weights in self.weights.items()}
        return {name: dalle_pytorch._our_shape(name, weights) for name, weights in named.items()}

    def step(self, task: DalleTask, inputs: dict[str, Tensor]) -> None:
        """One step as the fork's train_dalle.py makes it."""
        renamed = {f"dalle.{name}": weights for name, weights in self.ours().items()}
        functional_call(task.objective, renamed, kwargs=inputs)[0].backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()


def test_steps_after_the_forks_file_are_torchs_own_from_the_moments_it_holds():
    """In float64, so that what is compared is the steps, of 3e-4, and not the rounding of weights around 1."""
    theirs, checkpoint = TheirAdam(), read(FOLDER / "ckpt_fork_dalle.pt")
    task = make_task(cast(Dalle, build(checkpoint, device=CPU, dtype=torch.float64)).requires_grad_(True))
    assert checkpoint.training is not None
    moments, parallel = checkpoint.training["moments"], SingleDevice(CPU)
    optim = OptimConfig(optimizer="Adam", learning_rate=RATE, betas=(0.9, 0.999))
    parallel.wrap(task.objective, make_optimizer(task.objective, optim))
    parallel.adopt([(weights, moments[name]) for name, weights in task.dalle.named_parameters()])
    inputs = task.prepare(batch(theirs.raw["_expect"]["inputs"]), step=0, rng=generator(0))
    for _ in range(3):
        before = {name: weights.detach().clone() for name, weights in task.dalle.named_parameters()}
        theirs.step(task, inputs)
        parallel.backward(parallel.forward(inputs)[0])
        parallel.step(learning_rate=RATE, clip=CLIP)
        expected = theirs.ours()
        for name, weights in task.dalle.named_parameters():
            step, their_step = weights.detach() - before[name], expected[name].detach() - before[name]
            assert their_step.abs().max() > RATE / 100, name
            assert relative_error(step, their_step) < 1e-6, name
