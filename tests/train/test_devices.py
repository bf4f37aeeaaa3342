"""Objectives whose model is on another device than the CPU: no GPU is needed to see what stayed behind."""

from __future__ import annotations

import torch

from dalle3.models.discriminator import DiscriminatorConfig, PatchDiscriminator
from dalle3.models.vqgan import VQGAN, VQGANConfig
from dalle3.train.tasks.vqgan import VqganObjective, VqganTaskConfig

ELSEWHERE = torch.device("meta")


def test_all_tensors_of_a_vqgans_objective_are_where_its_model_is():
    config = VQGANConfig(resolution=8, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), num_tokens=4)
    model, adversary = VQGAN(config).to(ELSEWHERE), PatchDiscriminator(DiscriminatorConfig()).to(ELSEWHERE)
    objective = VqganObjective(model, adversary, VqganTaskConfig(revive_every=1), perceptual=None)
    tensors = [*objective.named_parameters(), *objective.named_buffers()]
    assert [name for name, tensor in tensors if tensor.device != ELSEWHERE] == []
