"""The public models of this family. Their files hold bare tensors; this is what else one must know to run them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from diffusion.errors import ConfigError, DiffusionError, WeightsError
from diffusion.process import ProcessConfig
from diffusion.unet import SuperResUNet, UNet, UNetConfig
from diffusion.weights import State, build, differences, infer_config, load


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published model.

    Attributes:
        unet: its network.
        process: what it was trained under.
        small_size: for an upsampler, pixels a side of what it was trained to enlarge; else None.
    """

    unet: UNetConfig
    process: ProcessConfig
    small_size: int | None = None

    @property
    def kind(self) -> type[UNet]:
        """`UNet`, or `SuperResUNet` for an upsampler."""
        return UNet if self.small_size is None else SuperResUNet

    def load(self, state: State) -> UNet:
        """The network with the weights `state`, whose own sizes win over the preset's where they can be read.

        Raises:
            WeightsError: the weights do not fit; the message names the tensors that differ, and presets that fit.
        """
        try:
            return load(infer_config(state, self.unet, kind=self.kind), state, kind=self.kind)
        except WeightsError as error:
            fitting = fitting_presets(state)
            raise WeightsError(f"{error}. Presets that fit: {', '.join(fitting) or 'none'}") from None

    def fits(self, state: State) -> bool:
        """Whether the weights `state` have this model's names, shapes and conditions.

        Models that differ in attention heads or noise schedule alone fit each other's weights.
        """
        try:
            config = infer_config(state, self.unet, kind=self.kind)
        except DiffusionError:
            return False
        mine, theirs = ((unet.emb_input_dims is None, unet.num_classes is None) for unet in (self.unet, config))
        return mine == theirs and not differences(build(config, self.kind), state)


_LINEAR = ProcessConfig(noise_schedule="linear")
_COSINE = ProcessConfig(noise_schedule="cosine")

_OPENAI_64 = UNetConfig(
    image_size=64,
    num_channels=192,
    num_res_blocks=3,
    num_head_channels=64,
    num_classes=1000,
    dropout=0.1,
    resblock_updown=True,
    use_new_attention_order=True,
)
_OPENAI_128 = UNetConfig(image_size=128, num_channels=256, num_heads=4, num_classes=1000, resblock_updown=True)
_OPENAI_256 = UNetConfig(image_size=256, num_channels=256, num_head_channels=64, num_classes=1000, resblock_updown=True)
_UNCONDITIONAL_256 = replace(_OPENAI_256, num_classes=None)
_LSUN = replace(_UNCONDITIONAL_256, dropout=0.1)
_UPSAMPLER_256 = UNetConfig(image_size=256, num_channels=192, num_heads=4, num_classes=1000, resblock_updown=True)
_UPSAMPLER_512 = UNetConfig(
    image_size=512,
    num_channels=192,
    channel_mult=(1, 1, 2, 2, 4, 4),
    attention_resolutions=(32, 16),
    num_head_channels=64,
    num_classes=1000,
    resblock_updown=True,
)


def _openai(unet: UNetConfig, process: ProcessConfig = _LINEAR, *, small_size: int | None = None) -> Preset:
    return Preset(unet=unet, process=process, small_size=small_size)


def _dalle3(unet: UNetConfig, process: ProcessConfig = _LINEAR) -> Preset:
    conditioned = replace(unet, num_classes=None, emb_input_dims=256, emb_output_dims=512)
    return Preset(unet=conditioned, process=replace(process, rescale_timesteps=True))


PRESETS: Mapping[str, Preset] = {
    "dalle3-256": _dalle3(_OPENAI_256),
    "dalle3-128": _dalle3(_OPENAI_128),
    "dalle3-64": _dalle3(replace(_OPENAI_64, dropout=0.0), _COSINE),
    "dalle3-ru": _dalle3(_OPENAI_256),
    "dalle3-64-256": Preset(
        unet=replace(_UPSAMPLER_256, num_classes=None),
        process=replace(_LINEAR, rescale_timesteps=True),
        small_size=64,
    ),
    "openai-64": _openai(_OPENAI_64, _COSINE),
    "openai-128": _openai(_OPENAI_128),
    "openai-256": _openai(_OPENAI_256),
    "openai-256-uncond": _openai(_UNCONDITIONAL_256),
    "openai-512": _openai(replace(_OPENAI_256, image_size=512)),
    "openai-64-256": _openai(_UPSAMPLER_256, small_size=64),
    "openai-128-512": _openai(_UPSAMPLER_512, small_size=128),
    "lsun-bedroom": _openai(_LSUN),
    "lsun-cat": _openai(_LSUN),
    "lsun-horse": _openai(_LSUN),
    "lsun-horse-nodropout": _openai(_UNCONDITIONAL_256),
}


def find_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown; it may be {', '.join(PRESETS)}")
    return PRESETS[name]


def fitting_presets(state: State) -> list[str]:
    """The names of all presets whose tensors have the names and shapes of `state`."""
    return [name for name, preset in PRESETS.items() if preset.fits(state)]
