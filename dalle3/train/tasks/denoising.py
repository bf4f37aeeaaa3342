"""What the training of the diffusion decoder and of the upsampler have in common.

Shapes: B batch, H W picture in pixels, T steps of the chain.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dalle3.checkpoint import Checkpoint
from dalle3.config import option
from dalle3.data.loader import Batch
from dalle3.errors import ConfigError
from dalle3.models.decoder import DecoderConfig, DiffusionDecoder, Upsampler
from dalle3.train.exchange import of_all
from dalle3.train.measures import psnr
from dalle3.train.seeds import on_device
from dalle3.train.task import Metrics, Preview, to_pil, to_unit
from diffusion.guidance import clipped
from diffusion.losses import training_losses
from diffusion.process import Network, Process
from diffusion.samplers import SAMPLERS, finish, per_image_noise
from diffusion.schedule import noise_angles
from diffusion.timesteps import AngleTimesteps, LossAwareTimesteps, UniformTimesteps, VisitedTimesteps

PREVIEWED, PREVIEW_STEPS = 4, 20
Condition = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """How the steps of the chain are drawn while it trains."""

    schedule_sampler: Literal["uniform", "angle", "visited", "loss-second-moment"] = option(
        "uniform",
        help="which steps are trained on: all alike, those where few-step sampling goes (evenly in its angle), those "
        "alone that the decoder's own number of steps visits, or more often those whose losses are large",
    )

    def timesteps(self, settings: DecoderConfig) -> UniformTimesteps:
        """What draws the steps of the whole chain of a network with `settings`."""
        process = Process(settings.process)
        if self.schedule_sampler == "angle":
            return AngleTimesteps(noise_angles(process.betas, data_std=settings.data_std))
        if self.schedule_sampler == "visited":
            return VisitedTimesteps(settings.chain().timestep_map, process.num_timesteps)
        kind = UniformTimesteps if self.schedule_sampler == "uniform" else LossAwareTimesteps
        return kind(process.num_timesteps)


class DenoisingObjective(nn.Module):
    """The loss of a network that is trained to undo noise; a subclass tells it its condition.

    Of several processes each learns the losses of all, so that all draw steps alike.
    """

    def __init__(self, network: nn.Module, process: Process, timesteps: UniformTimesteps) -> None:
        super().__init__()
        self.network, self.process, self.timesteps = network, process, timesteps

    def bind(self, condition: Condition) -> Network:
        """The network as a function of noisy pictures and timesteps alone."""
        raise NotImplementedError

    def emphasis(self, x: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Weights (B,) of the losses of noisy pictures x at timesteps (B,): all alike."""
        del timesteps, condition
        return x.new_ones(len(x))

    def forward(
        self, x0: Tensor, noise: Tensor, t: Tensor, weights: Tensor, condition: Condition
    ) -> tuple[Tensor, Metrics]:
        """The loss at steps t (B,), and how close the pictures are that the network expects there.

        Args:
            x0: (B, 3, H, W) clean pictures in -1..1.
            noise: as x0, standard normal.
            t: (B,) steps.
            weights: (B,), of their losses.
            condition: what `bind` takes.
        """
        seen: list[tuple[Tensor, Tensor]] = []
        bound = self.bind(condition)

        def network(x: Tensor, timesteps: Tensor) -> Tensor:
            output = bound(x, timesteps)
            seen.append((x, output.detach().float()))
            return output

        terms = training_losses(self.process, network, x0=x0, t=t, noise=noise)
        ((x, output),) = seen
        weights = weights * self.emphasis(x, self.process.model_timesteps(t, x.device), condition)
        if self.training:
            self.timesteps.note(of_all(t), of_all(terms["loss"].detach()))
        guess = self.process.prediction(output, x, t).x0.clamp(-1, 1)
        measured = {name: (terms[name].detach() * weights).mean() for name in ("mse", "l1", "vb") if name in terms}
        return (terms["loss"] * weights).mean(), {**measured, "psnr": psnr(guess / 2, x0 / 2)}


class DenoisingTask:
    """A denoising network and pictures; captions are not looked at. A subclass says what the condition is.

    Args:
        model: the network.
        objective: its loss.
        held_out: pictures uint8 (N, 3, H, W) for previews; None shows pictures it trains on.
    Raises:
        ConfigError: the network puts out a variance that its process does not learn, or the reverse.
    """

    tokenizer = None
    tokens_per_sample = 0
    rough: str  # what the preview compares with

    def __init__(
        self, model: DiffusionDecoder | Upsampler, objective: DenoisingObjective, *, held_out: Tensor | None
    ) -> None:
        check_network(model.settings)
        self.model, self.objective, self.held_out = model, objective, held_out

    def condition(self, images: Tensor, *, rng: torch.Generator | None) -> Condition:
        """What the network is told of pictures (B, 3, H, W) in [0, 1]; all of it, where there is no `rng`."""
        raise NotImplementedError

    def part(self, images: Tensor, condition: Condition, *, rng: torch.Generator) -> tuple[Tensor, Condition]:
        """The part of pictures and condition that is trained on: all of it."""
        del rng
        return images, condition

    def baseline(self, condition: Condition) -> Tensor:
        """The pictures (B, 3, H, W) in [0, 1] that one would have of a condition without the network."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    def prepare(self, batch: Batch, *, step: int, rng: torch.Generator) -> dict[str, Any]:
        """Pictures, noise, the steps they are noised to, and the condition."""
        images = to_unit(batch.content, self.device)
        t, weights = self.objective.timesteps.draw(len(images), rng=rng)
        images, condition = self.part(images, self.condition(images, rng=rng), rng=rng)
        noise = torch.randn(images.shape, generator=on_device(rng, self.device), device=self.device)
        return {
            "x0": images * 2 - 1,
            "noise": noise,
            "t": t.to(self.device),
            "weights": weights.to(self.device),
            "condition": condition,
        }

    def preview(self, batch: Batch, *, rng: torch.Generator) -> Preview:
        """In rows: what there would be without the network, what it draws, and the originals; in dB how close."""
        content = batch.content if self.held_out is None else self.held_out
        images = to_unit(content[:PREVIEWED], self.device)
        condition = self.condition(images, rng=None)
        baseline, drawn = self.baseline(condition), self.draw(condition, images.shape, rng=rng)
        return Preview(
            images=to_pil(torch.cat([baseline, drawn, images])),
            columns=len(images),
            metrics={
                f"preview_psnr_{self.rough}": float(psnr(baseline, images)),
                "preview_psnr": float(psnr(drawn, images)),
            },
        )

    @torch.no_grad()
    def draw(self, condition: Condition, shape: torch.Size, *, rng: torch.Generator) -> Tensor:
        """Pictures of `shape` (B, 3, H, W) in [0, 1], drawn in twenty steps."""
        config = self.model.settings
        steps = min(PREVIEW_STEPS, config.process.diffusion_steps)
        process = dataclasses.replace(config, respacing=f"angle{steps}").chain()
        noise = per_image_noise([rng] * shape[0])
        denoise = clipped(process.denoiser(self.objective.bind(condition)))
        blank = torch.empty(shape, device=self.device)
        return (finish(SAMPLERS[config.sampler](denoise, noise(blank), process=process, noise=noise)) + 1) / 2

    def checkpoint(self, state: dict[str, Tensor]) -> Checkpoint:
        """The network and its process."""
        kind = "super_res_unet" if isinstance(self.model, Upsampler) else "unet"
        return Checkpoint(kind=kind, config=self.model.settings, state=state)


def check_network(config: DecoderConfig) -> None:
    """Raises ConfigError unless network and process agree, and the pictures are RGB without classes."""
    unet, process = config.unet, config.process
    if unet.learn_sigma != process.learned_variance:
        raise ConfigError(
            f"learn_sigma is {unet.learn_sigma} and variance is {process.variance}; "
            "the first must be true where the second is learned or learned_range, and only there"
        )
    if unet.in_channels != 3 or unet.num_classes is not None:
        raise ConfigError(
            f"in_channels is {unet.in_channels} and num_classes {unet.num_classes}; "
            "it is trained on RGB pictures that have no class: leave both out"
        )
