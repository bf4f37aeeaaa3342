"""Training some of a model: what is frozen stays to the bit, and adapters are runs like others."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dalle3.checkpoint import fingerprint
from dalle3.errors import ConfigError
from dalle3.train.loop import LoopConfig
from dalle3.train.optim import Average, OptimConfig, make_optimizer
from dalle3.train.task import Task
from dalle3.train.tuning import TuningConfig
from tests.train.conftest import TASKS, fit, lora_task, vae
from tests.train.processes import losses

OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=2, lr_schedule="cosine", ema_decay=0.9)
LOOP = LoopConfig(steps=3, batch_size=2, ga_steps=2, save_every_n_steps=2, log_every_n_steps=1, sample_every_n_steps=0)
FROZEN = {
    "vae": ("encoder",),
    "clip": ("vision_model", "logit_scale"),
    "dalle": ("transformer.layers.0.1", "*_emb"),
    "diffusion": ("input_blocks", "middle_block_cond"),
    "upsampler": ("time_embed", "*.0.weight"),
    "vqgan": ("encoder", "quant_conv"),
    "gumbel_vq": ("decoder.up",),
}


def frozen(kind: str) -> Task:
    task = TASKS[kind]()
    TuningConfig(freeze=FROZEN[kind]).choose(task.model)
    return task


def tensors(folder: Path) -> dict[str, Tensor]:
    """All that a checkpoint holds in tensors, but the image tokenizer."""
    files = [path for path in folder.rglob("*.safetensors") if "codec" not in path.parts]
    assert len(files) >= 2
    return {f"{path.name}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_parts_stay_to_the_bit_and_a_resumed_run_is_the_uninterrupted_one(kind, tmp_path):
    before, task = TASKS[kind]().model.state_dict(), frozen(kind)
    stays = {name for name, weights in task.model.named_parameters() if not weights.requires_grad}
    fit(task, tmp_path, loop=LOOP, optim=OPTIM)
    whole, expected = losses(tmp_path), tensors(tmp_path / "step-00000003")
    for file in ("model.safetensors", "weights.safetensors"):  # the average, and the weights themselves
        same = {name for name in before if torch.equal(expected[f"{file}/{name}"], before[name])}
        assert stays <= same
        assert 0 < len(stays) <= len(same) < len(before)
    shutil.rmtree(tmp_path / "step-00000003")
    resumed = fit(frozen(kind), tmp_path, resume="auto", loop=LOOP, optim=OPTIM)
    found = tensors(resumed.checkpoint)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(tmp_path) == whole


def test_the_optimizer_holds_nothing_of_frozen_parts():
    task = frozen("dalle")
    optimizer = make_optimizer(task.objective, OPTIM)
    held = {id(weights) for group in optimizer.param_groups for weights in group["params"]}
    assert held == {id(weights) for weights in task.model.parameters() if weights.requires_grad}


def test_adapters_train_beside_a_dalle_that_stays(tmp_path):
    task = lora_task()
    before = fingerprint({name: t for name, t in task.dalle.state_dict().items() if "lora" not in name})
    outcome = fit(task, tmp_path, loop=dataclasses.replace(LOOP, sample_every_n_steps=3), optim=OPTIM)
    assert (tmp_path / "samples" / "step-00000003.png").is_file()
    assert fingerprint({name: t for name, t in task.dalle.state_dict().items() if "lora" not in name}) == before
    assert all("lora" in name for name in tensors(outcome.checkpoint))
    assert all(tensor.any() for tensor in tensors(outcome.checkpoint).values())
    assert Average(task.model, 0.9).state.keys() == task.model.state_dict().keys()
    assert sum(tensor.numel() for tensor in task.model.parameters()) < 0.5 * sum(
        tensor.numel() for tensor in task.dalle.parameters()
    )


def test_the_loss_falls_by_adapters_alone(tmp_path):
    steps = LoopConfig(steps=20, batch_size=8, log_every_n_steps=1, sample_every_n_steps=0)
    fit(lora_task(), tmp_path, loop=steps, optim=OptimConfig(learning_rate=3e-2))
    found = [row["loss"] for row in losses(tmp_path)]
    assert sum(found[-5:]) < 0.9 * sum(found[:5])


def test_a_name_of_no_part_lists_the_parts():
    with pytest.raises(ConfigError, match=r"--train has 'decodr', .*; the model has codebook, decoder, encoder$"):
        TuningConfig(train=("decodr",)).choose(vae())
    with pytest.raises(ConfigError, match="leaves nothing to train; freeze less"):
        TuningConfig(train=("decoder",), freeze=("encoder", "decoder")).choose(vae())
