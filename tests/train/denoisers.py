"""Tiny diffusion tasks on 8 x 8 pixels."""

from __future__ import annotations

from dalle3.models.decoder import DecoderConfig, DiffusionDecoder, Upsampler, UpsamplerConfig
from dalle3.models.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle3.train.seeds import seeded
from dalle3.train.tasks.denoising import DenoisingConfig
from dalle3.train.tasks.diffusion import DiffusionTask, DiffusionTaskConfig
from dalle3.train.tasks.upsampler import UpsamplerTask
from diffusion.process import ProcessConfig
from diffusion.unet import UNetConfig

PROCESS = ProcessConfig(diffusion_steps=30, noise_schedule="cosine")


def codec() -> DiscreteVAE:
    """Reads 2 pixels a code."""
    config = DiscreteVAEConfig(image_size=8, num_tokens=8, codebook_dim=8, num_layers=1, hidden_dim=8)
    with seeded(0, "codec"):
        return DiscreteVAE(config)


def unet(**changes: object) -> UNetConfig:
    """Four levels: 4 pixels a code, so that the codes are those of 4 x 4 pixels."""
    given = {
        "image_size": 8,
        "num_channels": 32,
        "channel_mult": (1.0, 1.0, 1.0, 1.0),
        "num_res_blocks": 1,
        "attention_resolutions": (2,),
        "dropout": 0.1,  # so that resuming must get the dropped activations right too
        "emb_input_dims": 8,
        "emb_output_dims": 32,
        "null_embedding": True,
    }
    return UNetConfig(**{**given, **changes})


def diffusion_task(
    config: DiffusionTaskConfig | None = None,
    *,
    process: ProcessConfig = PROCESS,
    spread: float | None = None,
    **changes: object,
) -> DiffusionTask:
    """A diffusion decoder."""
    with seeded(0, "unet"):
        model = DiffusionDecoder(DecoderConfig(unet=unet(**changes), process=process, spread=spread))
    return DiffusionTask(model, codec(), config or DiffusionTaskConfig(schedule_sampler="loss-second-moment"))


def upsampler_task() -> UpsamplerTask:
    """An upsampler from 2 x 2 to 8 x 8 pixels."""
    network = unet(channel_mult=(1.0, 1.0), emb_input_dims=None, null_embedding=False)
    with seeded(0, "unet"):
        model = Upsampler(UpsamplerConfig(unet=network, process=PROCESS, small_size=2))
    return UpsamplerTask(model, DenoisingConfig())
