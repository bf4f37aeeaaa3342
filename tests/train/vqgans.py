"""Tiny VQGANs on 8 x 8 pixels, and their adversary."""

from __future__ import annotations

from dalle3.models.discriminator import DiscriminatorConfig, PatchDiscriminator
from dalle3.models.lpips import Lpips
from dalle3.models.vqgan import VQGAN, GumbelVQ, GumbelVQConfig, VQGANConfig
from dalle3.train.seeds import seeded
from dalle3.train.tasks.vqgan import GumbelTaskConfig, VqganTask, VqganTaskConfig

SIZES = {
    "num_tokens": 16,
    "embed_dim": 8,
    "z_channels": 8,
    "resolution": 8,
    "ch": 32,
    "ch_mult": (1, 1),
    "num_res_blocks": 1,
    "attn_resolutions": (),
}


def discriminator() -> PatchDiscriminator:
    """Sees 8 x 8 pixels as 3 x 3 patches."""
    with seeded(0, "discriminator"):
        return PatchDiscriminator(DiscriminatorConfig(disc_ndf=4, disc_num_layers=1))


def vqgan_task(config: VqganTaskConfig | None = None, *, perceptual: Lpips | None = None) -> VqganTask:
    """A VQGAN whose discriminator takes part from the third step on."""
    with seeded(0, "vqgan"):
        model = VQGAN(VQGANConfig(**SIZES))
    return VqganTask(model, discriminator(), config or VqganTaskConfig(disc_start=2), perceptual=perceptual)


def gumbel_task() -> VqganTask:
    """A GumbelVQ, against a discriminator from the beginning."""
    with seeded(0, "gumbel"):
        model = GumbelVQ(GumbelVQConfig(**SIZES))
    return VqganTask(model, discriminator(), GumbelTaskConfig(disc_start=0, temp_steps=6))
