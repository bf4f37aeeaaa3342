"""Loading weights: bare state dicts as guided-diffusion writes them, which say nothing of their network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from diffusion.errors import WeightsError
from diffusion.unet import SuperResUNet, UNet, UNetConfig

State = Mapping[str, Tensor]
Network = TypeVar("Network", bound=UNet)

SHOWN = 4


def build(config: UNetConfig, kind: type[Network]) -> Network:
    """A network without storage, on the `meta` device."""
    with torch.device("meta"):
        return kind(config)


def load(config: UNetConfig, state: State, *, kind: type[Network]) -> Network:
    """The network of `config` that owns the tensors of `state`: nothing is copied that is float32 already.

    Args:
        config: its shape.
        state: parameters by name.
        kind: `UNet` or `SuperResUNet`.
    Raises:
        WeightsError: a tensor is missing, unexpected or of another shape; the message names the first few.
    """
    network = build(config, kind)
    if wrong := differences(network, state):
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise WeightsError(
            f"{len(wrong)} tensors do not fit this network: {'; '.join(wrong[:SHOWN])}{more}. "
            "Choose the preset, or give the flags, that the weights were trained with"
        )
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True, assign=True)
    return network.requires_grad_(True)


def differences(network: UNet, state: State) -> list[str]:
    """One phrase for each tensor in which `state` and the network's own differ."""
    expected = network.state_dict()
    missing = [f"{name} is missing" for name in expected if name not in state]
    unexpected = [f"{name} {list(state[name].shape)} is not of it" for name in state if name not in expected]
    shapes = [
        f"{name} is {list(state[name].shape)} where it has {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    return shapes + missing + unexpected


def infer_config(state: State, base: UNetConfig, *, kind: type[UNet]) -> UNetConfig:
    """`base` with all that the tensors tell: width, classes, embedding sizes, learned sigma, kinds of block.

    What they cannot tell stays as in `base`: attention heads and where there is attention, levels, the order of
    attention, dropout.

    Args:
        state: parameters by name.
        base: a preset's config.
        kind: `UNet` or `SuperResUNet`.
    Raises:
        WeightsError: these are not the weights of a UNet of guided-diffusion at all, or of the other kind.
    """
    in_channels, width = _shape(state, "input_blocks.0.0.weight")[1], _shape(state, "time_embed.0.weight")[1]
    embedding = state.get("external_block.op.weight")
    # Channels of two pictures are an upsampler's, or those of a decoder that also sees what its codes show.
    upsampler = issubclass(kind, SuperResUNet)
    low_res = not upsampler and embedding is not None and in_channels == 2 * base.in_channels
    wanted = 2 * base.in_channels if upsampler or low_res else base.in_channels
    if in_channels != wanted:
        raise WeightsError(
            f"the first convolution takes {in_channels} channels, a {kind.__name__} {wanted}: "
            "decoders take 3, upsamplers 6; give each file where it belongs"
        )
    labels = state.get("label_emb.weight")
    steering = _shape(state, "input_blocks.1.0.emb_layers.1.weight")[0]
    return replace(
        base,
        num_channels=width,
        num_classes=None if labels is None else labels.shape[0],
        learn_sigma=_shape(state, "out.2.weight")[0] == 2 * base.in_channels,
        use_scale_shift_norm=steering == 2 * _shape(state, "input_blocks.1.0.out_layers.0.weight")[0],
        resblock_updown=not any(name.startswith("input_blocks") and name.endswith(".op.weight") for name in state),
        emb_input_dims=None if embedding is None else embedding.shape[1],
        emb_output_dims=base.emb_output_dims if embedding is None else embedding.shape[0],
        null_embedding="null_embedding" in state,
        low_res=low_res,
    )


def _shape(state: State, name: str) -> torch.Size:
    if name not in state:
        found = ", ".join(list(state)[:SHOWN]) or "nothing"
        raise WeightsError(f"these are not the weights of a diffusion UNet: no {name} among them, but {found}, ...")
    return state[name].shape
