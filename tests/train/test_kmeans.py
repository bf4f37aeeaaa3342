"""A discrete VAE whose codebook comes from k-means in the middle of its training."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from dalle3.cli import main
from dalle3.errors import ConfigError
from dalle3.models.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle3.runtime import generator
from dalle3.train.codebook import set_codebook
from dalle3.train.loop import LoopConfig
from dalle3.train.optim import OptimConfig
from dalle3.train.task import to_unit
from dalle3.train.tasks.vae import VaeTask, VaeTaskConfig
from tests.train.conftest import examples, fit, kmeans_task, vae

CPU = torch.device("cpu")


def weights(outcome) -> dict[str, torch.Tensor]:
    return load_file(outcome.checkpoint / "model.safetensors")


def run(tmp_path, steps: int, *, name: str = "run", resume: str = "never"):
    loop = LoopConfig(steps=steps, batch_size=4, sample_every_n_steps=0)
    return fit(kmeans_task(), tmp_path / name, resume=resume, loop=loop, optim=OptimConfig(learning_rate=1e-2))


def test_until_then_the_codebook_and_the_logits_are_left_alone(tmp_path):
    begun = kmeans_task().model.state_dict()
    trained = weights(run(tmp_path, 2))
    still = {name for name, tensor in trained.items() if torch.equal(tensor, begun[name])}
    assert still == {"codebook.weight", "encoder.2.weight", "encoder.2.bias"}


def test_then_it_is_the_k_means_of_what_the_encoder_sees(tmp_path):
    trained = kmeans_task()
    trained.model.load_state_dict(weights(run(tmp_path, 2)))
    trained._set_codebook()
    expected = vae()
    expected.load_state_dict(weights(run(tmp_path, 2, name="again")))
    set_codebook(expected, [to_unit(pictures, CPU) for pictures in examples()], rng=generator(0, "codebook"))
    assert torch.equal(trained.model.codebook.weight, expected.codebook.weight)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_stopped_before_at_or_after_it_goes_on_to_the_same_bits(tmp_path, stop):
    whole = weights(run(tmp_path, 4, name="whole"))
    run(tmp_path, stop)
    continued = weights(run(tmp_path, 4, resume="auto"))
    assert all(torch.equal(continued[name], tensor) for name, tensor in whole.items())


def test_features_that_cannot_be_entries_are_refused():
    wide = DiscreteVAE(DiscreteVAEConfig(image_size=8, num_tokens=8, codebook_dim=4, num_layers=2, hidden_dim=8))
    with pytest.raises(ConfigError, match="needs both to be the same"):
        VaeTask(wide, VaeTaskConfig(kmeans_step=1), examples=examples)


def test_deepspeed_is_refused_since_it_keeps_copies_of_the_weights(tmp_path, capsys):
    line = ["train", "vae", "--image_text_folder", "x", "--out", str(tmp_path), "--kmeans_step", "1", "--deepspeed"]
    assert main(line) == 2
    assert "train without --deepspeed" in capsys.readouterr().err
