"""The UNets of guided-diffusion, told by their weights; no file of theirs says what it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_guided_diffusion(state: dict[str, Any]) -> bool:
    """Whether these are the weights of a UNet of guided-diffusion, by their names."""
    return "time_embed.0.weight" in state and "input_blocks.0.0.weight" in state


def describe_unet(state: dict[str, Tensor]) -> str:
    """What the shapes tell: "width 256, conditioned on embeddings of 256 channels (512 in the middle)"."""
    width, channels = state["input_blocks.0.0.weight"].shape[:2]
    said = [f"width {width}"]
    if "external_block.op.weight" in state:
        inside, outside = state["external_block.op.weight"].shape[:2]
        said.append(f"conditioned on embeddings of {outside} channels ({inside} in the middle)")
    if "label_emb.weight" in state:
        said.append(f"conditioned on {state['label_emb.weight'].shape[0]} classes")
    if channels == 6:
        said.append("an upsampler")
    if "out.2.weight" in state and state["out.2.weight"].shape[0] == 6:
        said.append("learned variances")
    return ", ".join(said)
