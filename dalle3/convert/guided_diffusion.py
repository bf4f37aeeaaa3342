"""The UNets of guided-diffusion, told by their weights; no file of theirs says what it is."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dalle3.checkpoint import Checkpoint
from dalle3.errors import CheckpointError
from dalle3.models.decoder import DecoderConfig, UpsamplerConfig
from diffusion.errors import DiffusionError
from diffusion.presets import Preset, find_preset, fitting_presets
from diffusion.process import ProcessConfig
from diffusion.unet import SuperResUNet, UNet, UNetConfig
from diffusion.weights import State, build, differences, infer_config

KINDS: dict[str, type[UNet]] = {"unet": UNet, "super_res_unet": SuperResUNet}
SHOWN = 4  # tensors named where the layout does not fit
_STEP = re.compile(r"(?:model|ema_[\d.]+_)(\d{5,})")  # model010000.pt, ema_0.9999_010000.pt


class LayoutError(CheckpointError):
    """A UNet whose tensors do not tell how it must be run.

    Attributes:
        kind: "unet" or "super_res_unet".
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a user says of a UNet, over what its tensors tell.

    Attributes:
        preset: the published model it is; see `diffusion.presets`.
        unet: fields of `UNetConfig` in which it differs.
        process: fields of `ProcessConfig` in which it differs.
        small_size: of an upsampler, pixels a side of what it was trained to enlarge.
    """

    preset: str | None = None
    unet: Mapping[str, Any] = field(default_factory=dict)
    process: Mapping[str, Any] = field(default_factory=dict)
    small_size: int | None = None

    @property
    def says_something(self) -> bool:
        """Whether any of it was given."""
        return self != Layout()


def is_guided_diffusion(state: dict[str, Any]) -> bool:
    """Whether these are the weights of a UNet of guided-diffusion, by their names."""
    return "time_embed.0.weight" in state and "input_blocks.0.0.weight" in state


def describe_unet(state: Mapping[str, Tensor]) -> str:
    """What the shapes tell: "width 256, conditioned on embeddings of 256 channels (512 in the middle)"."""
    width, channels = state["input_blocks.0.0.weight"].shape[:2]
    said = [f"width {width}"]
    if "external_block.op.weight" in state:
        inside, outside = state["external_block.op.weight"].shape[:2]
        said.append(f"conditioned on embeddings of {outside} channels ({inside} in the middle)")
    if "label_emb.weight" in state:
        said.append(f"conditioned on {state['label_emb.weight'].shape[0]} classes")
    if channels == 6:
        said.append("seeing a second picture" if "external_block.op.weight" in state else "an upsampler")
    if "out.2.weight" in state and state["out.2.weight"].shape[0] == 6:
        said.append("learned variances")
    return ", ".join(said)


def unet_checkpoint(state: dict[str, Tensor], *, path: Path, layout: Layout) -> Checkpoint:
    """The diffusion decoder or upsampler whose weights `state` is; its tensors are taken as they are.

    Args:
        state: parameters by name.
        path: of the file, whose name may tell the training step.
        layout: what the user says of it; without anything, the one published model that its tensors fit.
    Raises:
        LayoutError: nothing is said, and not just one published model fits.
        CheckpointError: the tensors are not those of the layout; which, and what would fit.
    """
    two_pictures = state["input_blocks.0.0.weight"].shape[1] == 6
    kind = "super_res_unet" if two_pictures and "external_block.op.weight" not in state else "unet"
    try:
        base, notes = _base(state, kind, layout)
        unet = dataclasses.replace(infer_config(state, base.unet, kind=KINDS[kind]), **layout.unet)
        process = _process(base.process, unet, layout.process)
        wrong = differences(build(unet, KINDS[kind]), state)
    except DiffusionError as error:
        raise CheckpointError(str(error)) from None
    if wrong:
        raise _misfit(state, wrong)
    step = _STEP.fullmatch(path.stem)
    return Checkpoint(
        kind=kind,
        config=_config(kind, unet, process, layout.small_size or base.small_size),
        state=state,
        notes=notes,
        training={"step": int(step[1])} if step else None,
    )


def _base(state: State, kind: str, layout: Layout) -> tuple[Preset, tuple[str, ...]]:
    """What the tensors do not tell, and what was assumed of it."""
    if layout.preset is not None:
        preset = find_preset(layout.preset)
        if preset.kind is not KINDS[kind]:
            names = {UNet: "a decoder, which takes 3 channels", SuperResUNet: "an upsampler, which takes 6"}
            fitting = ", ".join(fitting_presets(state)) or "none"
            raise CheckpointError(
                f"the weights are of {names[KINDS[kind]]}, and {layout.preset} is {names[preset.kind]}; "
                f"presets that fit: {fitting}"
            )
        return preset, ()
    if layout.says_something:
        return Preset(unet=UNetConfig(**layout.unet), process=ProcessConfig(**layout.process)), ()
    fitting = fitting_presets(state)
    different = {_sampled(find_preset(name), state): name for name in fitting}
    if len(different) != 1:
        fits = f"they fit {', '.join(fitting)}; say which" if fitting else "they fit no published model; say its layout"
        raise LayoutError(
            f"a UNet of guided-diffusion ({describe_unet(state)}), whose tensors do not tell all one must know to run "
            f"it: {fits} with `dalle3 convert`: --preset, or the flags it was trained with, and give the folder",
            kind=kind,
        )
    return find_preset(fitting[0]), (f"the layout and noise schedule of {fitting[0]}, which its tensors fit",)


def _sampled(preset: Preset, state: State) -> tuple[UNetConfig, ProcessConfig]:
    """A preset as far as sampling can tell it from others."""
    unet = infer_config(state, preset.unet, kind=preset.kind)
    return dataclasses.replace(unet, dropout=0.0), preset.process


def _process(base: ProcessConfig, unet: UNetConfig, said: Mapping[str, Any]) -> ProcessConfig:
    if not unet.learn_sigma and base.learned_variance:
        base = dataclasses.replace(base, variance="fixed_large")  # guided-diffusion's, without learn_sigma
    return dataclasses.replace(base, **said)


def _config(kind: str, unet: UNetConfig, process: ProcessConfig, small_size: int | None) -> DecoderConfig:
    if kind == "unet":
        return DecoderConfig(unet=unet, process=process)
    return UpsamplerConfig(unet=unet, process=process, small_size=small_size or unet.image_size // 4)


def _misfit(state: State, wrong: list[str]) -> CheckpointError:
    more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    fitting = ", ".join(fitting_presets(state)) or "none"
    return CheckpointError(
        f"{len(wrong)} tensors do not fit this layout: {'; '.join(wrong[:SHOWN])}{more}. "
        f"Say the preset or the flags that it was trained with; presets that fit: {fitting}"
    )
