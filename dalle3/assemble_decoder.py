"""The parts of the second stage: found, read, compared with each other and built."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch

from dalle3.assemble import Parts, find_dalle
from dalle3.checkpoint import CODEC as CODEC_FOLDER
from dalle3.checkpoint import Checkpoint, build, describe_codec, is_checkpoint, verify
from dalle3.config import option
from dalle3.convert.guided_diffusion import Layout
from dalle3.convert.roles import CODEC, DECODER, UPSAMPLER, read_as
from dalle3.decode import PictureDecoder
from dalle3.errors import CheckpointError, ConfigError
from dalle3.models.decoder import DecoderConfig, DiffusionDecoder, Upsampler
from dalle3.models.image_tokenizer import ImageTokenizer
from dalle3.pipeline import Model
from dalle3.rerank import HUB_CLIP, Scorer, Tokenize, load_clip, load_default_clip
from dalle3.runtime import pick_device, pick_dtype
from dalle3.shipped import default_model, located

DECODER_FOLDER, UPSAMPLER_FOLDER = "decoder", "upsampler"
# Where the README of DALL-3's guided-diffusion puts what it has one download, beside which its scripts are run.
MODELS = Path("models")
DALL_3_DECODER, DALL_3_UPSAMPLER = MODELS / "model-latest.pt", MODELS / "model-super-res.pt"
DALL_3_CODEC = MODELS / "vqgan_gumbel_f8" / "checkpoints" / "last.ckpt"
DALL_3_CODEC_CONFIG = MODELS / "vqgan_gumbel_f8" / "configs" / "model.yaml"


@dataclass(frozen=True, kw_only=True)
class DecoderParts:
    """Which files make up the second stage; the flags of DALL-3's sample.py, and some more."""

    model_path: Path | None = option(
        None,
        help="the decoder, or an upsampler to only enlarge pictures: a dalle3 folder, a model of guided-diffusion "
        f"(default: {DALL_3_DECODER}, else that of the default model)",
    )
    model_size: Literal["256", "128", "64"] | None = option(
        None, help="which of DALL-3's decoders a bare file is (default: told from its tensors)"
    )
    vae_path: Path | None = option(
        None,
        help="the image tokenizer of the codes, as --vae_path of generate.py (default: that beside the decoder, else "
        f"{DALL_3_CODEC})",
    )
    vqgan_config_path: Path | None = option(None, help="its .yaml, where it is a .ckpt of taming")
    dvae_mode: bool = option(
        False, help="the image tokenizer is a DiscreteVAE, as a check: every kind is told by itself"
    )
    upsampler: Path | None = option(
        None, help=f"the upsampler of --upsample (default: that beside the decoder, else {DALL_3_UPSAMPLER})"
    )
    clip: str | None = option(
        None, help=f"the CLIP that steers (default: that beside the model, else OpenAI's ViT-B-16.pt, else {HUB_CLIP})"
    )
    device: str = option("auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")
    cpu: bool = option(False, help="the same as --device cpu")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", help="number format of the UNets and of CLIP")

    def __post_init__(self) -> None:
        """Raises ConfigError where two flags contradict each other."""
        if self.cpu and self.device not in ("auto", "cpu"):
            raise ConfigError(f"--cpu and --device {self.device} contradict each other; leave one out")
        if self.vqgan_config_path and not self.vae_path:
            raise ConfigError("--vqgan_config_path describes a .ckpt; name that with --vae_path")


def load_decoder(
    path: str | Path | None = None,
    *,
    vae: str | Path | None = None,
    vae_config: str | Path | None = None,
    upsampler: str | Path | None = None,
    clip: str | None = None,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    enlarges: bool = False,
) -> PictureDecoder:
    """The second stage that `path` holds, ready to decode; see `assemble_decoder`."""
    model_path, vae_path, vqgan_config_path, upsampler_path = (
        None if found is None else Path(found) for found in (path, vae, vae_config, upsampler)
    )
    parts = DecoderParts(
        model_path=model_path,
        vae_path=vae_path,
        vqgan_config_path=vqgan_config_path,
        upsampler=upsampler_path,
        clip=clip,
        device=device,
        dtype=dtype,
    )
    return assemble_decoder(parts, enlarges=enlarges or upsampler is not None)


def assemble_decoder(parts: DecoderParts, *, enlarges: bool) -> PictureDecoder:
    """The second stage that `parts` make up, its parts compared before any is built.

    Args:
        parts: the files.
        enlarges: whether the upsampler is wanted too.
    Raises:
        Dalle3Error: a file is missing, broken or of the wrong kind, or the parts do not belong together.
    """
    device = pick_device("cpu" if parts.cpu else parts.device)
    dtype = pick_dtype(parts.dtype, device)
    path = _decoder_path(parts)
    first = read_as(path, DECODER, UPSAMPLER, flag="--model_path", layout=_layout(parts, path))
    _check_size(first.config, parts, path)
    alone = first.kind in UPSAMPLER.kinds
    checkpoints = {"upsampler" if alone else "decoder": first}
    if not alone:
        codec, codec_path = _read_codec(parts, first, path)
        check_conditions(first, codec, path=path, codec_path=codec_path)
        _check_dvae(codec, parts, codec_path)
        checkpoints["codec"] = codec
        checkpoints |= _read_upsampler(parts.upsampler, path, enlarges=enlarges)
    networks = {name: build_network(found, device=device, dtype=dtype) for name, found in checkpoints.items()}
    return PictureDecoder(
        unet=cast(DiffusionDecoder | None, networks.get("decoder")),
        codec=cast(ImageTokenizer | None, networks.get("codec")),
        upsampler=cast(Upsampler | None, networks.get("upsampler")),
        open_clip=partial(_open_clip, parts.clip, path.parent, device=device, dtype=dtype),
        checkpoints=checkpoints,
    )


@dataclass(frozen=True, kw_only=True)
class SecondStage:
    """The second stage of `generate.py`."""

    diffusion: bool = option(False, help="decode the codes with the diffusion decoder too, beside the first picture")
    decoder: Path | None = option(None, help="the decoder (default: decoder/ in the folder of the model)")
    upsampler: Path | None = option(None, help="the upsampler of --upsample (default: upsampler/ beside the decoder)")

    def __post_init__(self) -> None:
        """Raises ConfigError where a decoder is named and not asked for."""
        if (self.decoder or self.upsampler) and not self.diffusion:
            raise ConfigError("--decoder and --upsampler are for --diffusion; add that")


def add_second_stage(model: Model, parts: Parts, stage: SecondStage, *, enlarges: bool) -> PictureDecoder:
    """The second stage of a model that is there already: it shares its image tokenizer and its CLIP.

    Args:
        model: the first stage.
        parts: the files it was assembled from.
        stage: the files of the second.
        enlarges: whether the upsampler is wanted too.
    Raises:
        Dalle3Error: as `assemble_decoder`.
    """
    folder, _ = find_dalle(parts)
    path = stage.decoder or folder / DECODER_FOLDER
    if stage.decoder is None and not is_checkpoint(path):
        raise CheckpointError(f"{folder} has no diffusion decoder in {DECODER_FOLDER}/; pass one as --decoder")
    decoder = read_as(path, DECODER, flag="--decoder")
    check_conditions(decoder, model.checkpoints["codec"], path=path, codec_path=folder)
    checkpoints = {"decoder": decoder, **_read_upsampler(stage.upsampler, path, enlarges=enlarges)}
    dtype = pick_dtype(parts.dtype, model.device)
    networks = {name: build_network(found, device=model.device, dtype=dtype) for name, found in checkpoints.items()}
    return PictureDecoder(
        unet=cast(DiffusionDecoder, networks["decoder"]),
        codec=model.codec,
        upsampler=cast(Upsampler | None, networks.get("upsampler")),
        open_clip=lambda: model.clip,
        checkpoints={**checkpoints, "codec": model.checkpoints["codec"]},
    )


def build_network(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """The network of a checkpoint, frozen; of a UNet only the convolutions are in `dtype`.

    In float32 on a CPU the tensors of the file, which is mapped, become its parameters: nothing is there twice. For
    other formats and devices each is converted alone, and laid out in channels_last, which takes 40 % of the time of a
    pass off in bfloat16 and nothing in float32 (where it is enough that pictures are).
    """
    network = build(checkpoint, device=device, dtype=torch.float32).requires_grad_(False)
    in_place = dtype == torch.float32 and device.type == "cpu"
    if isinstance(network, DiffusionDecoder | Upsampler) and not in_place:
        return network.cast(dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network


def check_conditions(decoder: Checkpoint, codec: Checkpoint, *, path: Path, codec_path: Path) -> None:
    """Raises CheckpointError unless the decoder takes what the image tokenizer makes of codes."""
    taken, given = decoder.config.unet.emb_input_dims, verify(codec).embed_dim
    if taken is None:
        raise CheckpointError(
            f"{path} is a diffusion model that takes no codes; pass one trained on codes as --model_path"
        )
    known = {key: value for key, value in (decoder.codec_info or {}).items() if key in ("kind", "vocab", "sha256")}
    found = describe_codec(codec) if known else {}
    differing = [
        f"{key} {str(value)[:12]}, not {str(found[key])[:12]}" for key, value in known.items() if value != found[key]
    ]
    if taken != given:
        differing.insert(0, f"{taken} channels, not {given}")
    if differing:
        raise CheckpointError(
            f"{path} and {codec_path} do not belong together: the decoder was trained with an image tokenizer of "
            f"{'; '.join(differing)}. Pass the one it was trained with as --vae_path"
        )


def _decoder_path(parts: DecoderParts) -> Path:
    """The file or folder of the decoder; of a whole model's folder the one in it."""
    if parts.model_path is not None:
        path = located(parts.model_path)
    else:
        path = DALL_3_DECODER if DALL_3_DECODER.is_file() else default_model(flag="--model_path")
    inside = path / DECODER_FOLDER
    if is_checkpoint(inside):
        return inside
    if parts.model_path is None and path != DALL_3_DECODER:
        raise CheckpointError(f"there is no {DALL_3_DECODER} and no {inside}; pass a decoder as --model_path")
    return path


def _layout(parts: DecoderParts, path: Path) -> Layout | None:
    if parts.model_size is None or path.is_dir():
        return None
    return Layout(preset=f"dalle3-{parts.model_size}")


def _check_size(config: DecoderConfig, parts: DecoderParts, path: Path) -> None:
    if parts.model_size is not None and config.unet.image_size != int(parts.model_size):
        raise ConfigError(
            f"--model_size is {parts.model_size}, and {path} is one of {config.unet.image_size}; leave it out"
        )


def _read_codec(parts: DecoderParts, decoder: Checkpoint, path: Path) -> tuple[Checkpoint, Path]:
    """The image tokenizer and its file: the one named, else the decoder's own, one beside it, or DALL-3's."""
    beside, config_path = path.parent / CODEC_FOLDER, parts.vqgan_config_path
    if parts.vae_path is None and decoder.codec is not None:
        return decoder.codec, path
    if parts.vae_path is not None:
        codec_path = parts.vae_path
    elif is_checkpoint(beside):
        codec_path = beside
    elif DALL_3_CODEC.is_file():
        codec_path, config_path = DALL_3_CODEC, DALL_3_CODEC_CONFIG
    else:
        raise CheckpointError(
            f"{path} does not hold its image tokenizer; pass the one it was trained with as --vae_path"
        )
    return read_as(codec_path, CODEC, flag="--vae_path", config_path=config_path), codec_path


def _check_dvae(codec: Checkpoint, parts: DecoderParts, path: Path) -> None:
    if parts.dvae_mode and "dvae" not in codec.kind and codec.kind != "discrete_vae":
        raise ConfigError(
            f"--dvae_mode says that the image tokenizer of {path} is a DiscreteVAE, and it is a {codec.kind}; "
            "leave it out"
        )


def _read_upsampler(named: Path | None, decoder: Path, *, enlarges: bool) -> dict[str, Checkpoint]:
    """The upsampler by its name, where one is wanted: the one named, or else one beside the decoder."""
    if enlarges:
        return {"upsampler": read_as(named or _upsampler_beside(decoder), UPSAMPLER, flag="--upsampler")}
    if named is not None:
        raise ConfigError("--upsampler is of use with --upsample only; add that: pixels a side")
    return {}


def _upsampler_beside(path: Path) -> Path:
    beside = path.parent / UPSAMPLER_FOLDER
    if is_checkpoint(beside):
        return beside
    if DALL_3_UPSAMPLER.is_file():
        return DALL_3_UPSAMPLER
    raise CheckpointError(f"there is no {beside} and no {DALL_3_UPSAMPLER}; pass an upsampler as --upsampler")


def _open_clip(name: str | None, model: Path, *, device: torch.device, dtype: torch.dtype) -> tuple[Scorer, Tokenize]:
    if name is None:
        return load_default_clip(model, device=device, dtype=dtype)
    return load_clip(name, device=device, dtype=dtype)
