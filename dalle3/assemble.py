"""The parts of a pipeline: found, read, compared with each other and built."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch

from dalle3.checkpoint import Checkpoint, build, build_codec, describe_codec, network_class
from dalle3.config import option
from dalle3.convert.lora import base_of, is_adapter, joined
from dalle3.convert.roles import CODEC, DALLE, LORA, read_as
from dalle3.errors import CheckpointError, ConfigError
from dalle3.models.dalle import Dalle, DalleConfig
from dalle3.pipeline import Model
from dalle3.rerank import HUB_CLIP, Scorer, Tokenize, load_clip, load_default_clip
from dalle3.runtime import dalle_pytorch_cache, pick_device, pick_dtype
from dalle3.shipped import default_model, located
from dalle3.tokenizers.base import Tokenizer
from dalle3.tokenizers.load import load_tokenizer, read_tokenizer


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which files make up the model; the flags of the generate.py of DALL-3 and of DALLE-pytorch, and some more."""

    dalle_path: Path | None = option(
        None,
        help="the DALLE: a dalle3 folder or adapter, a dalle.pt of DALLE-pytorch, a DeepSpeed folder, or the name of "
        "a model of this package (default: the default model)",
    )
    lora: Path | None = option(None, help="a LoRA adapter (default of --dalle_path: the DALLE it was trained beside)")
    lora_scale: float = option(1.0, help="how strong the adapter is: 1 as it was trained, 0 not at all")
    vae_path: Path | None = option(
        None,
        help="the image tokenizer, where it is not in the same file: a dalle3 folder, a vae.pt, a taming .ckpt, "
        "or a folder with OpenAI's encoder.pkl and decoder.pkl",
    )
    taming: bool = option(False, help="the image tokenizer is one of taming's, a VQGAN or GumbelVQ")
    vqgan_model_path: Path | None = option(None, help="its .ckpt (default: the one DALLE-pytorch downloaded)")
    vqgan_config_path: Path | None = option(None, help="its .yaml")
    bpe_path: Path | None = option(
        None, help="the text tokenizer: a youtokentome model, or with --hug a tokenizers JSON"
    )
    hug: bool = option(False, help="--bpe_path is a JSON of Hugging Face's tokenizers")
    chinese: bool = option(False, help="the text tokenizer is bert-base-chinese; --bpe_path may name its folder")
    clip: str | None = option(
        None,
        help="the CLIP that ranks: a folder, a name on the Hugging Face hub, or an archive like ViT-B-16.pt "
        f"(default: the one beside the model, else OpenAI's ViT-B-16.pt, else {HUB_CLIP})",
    )
    device: str = option("auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", help="number format of the DALLE")

    def __post_init__(self) -> None:
        """Raises ConfigError where two flags name the image tokenizer, or one needs another."""
        if self.vae_path and self.vqgan_model_path:
            raise ConfigError("--vae_path and --vqgan_model_path both name the image tokenizer; leave one out")
        if self.vqgan_config_path and not (self.vqgan_model_path or self.vae_path):
            raise ConfigError("--vqgan_config_path describes a .ckpt; name that with --vqgan_model_path")


def load(
    path: str | Path | None = None,
    *,
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    vae: str | Path | None = None,
    vae_config: str | Path | None = None,
    clip: str | Path | None = None,
    bpe_path: str | Path | None = None,
    hug: bool = False,
    chinese: bool = False,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> Model:
    """The model that `path` holds, ready to draw; the default model without one.

    Args:
        path: a dalle3 folder, a `dalle.pt` of DALLE-pytorch or the DALL-3 fork, a DeepSpeed folder, or the name of a
            model that comes with the package.
        lora: a LoRA adapter, added to the DALLE `lora_scale` times.
        vae: the image tokenizer, where `path` does not hold it; with `vae_config`, the .yaml of a taming .ckpt.
        clip: the CLIP that ranks: a folder, a name on the Hugging Face hub, or an archive like `ViT-B-16.pt`.
        bpe_path: the text tokenizer, where `path` does not hold it; `hug` and `chinese` say of what kind.
        device: such as "cpu" or "cuda:1"; "auto" takes a GPU where there is one.
        dtype: number format of the DALLE.
    Raises:
        Dalle3Error: a file is missing, broken or of the wrong kind, or the parts do not belong together.
    """
    parts = Parts(
        dalle_path=_path(path),
        lora=_path(lora),
        lora_scale=lora_scale,
        vae_path=_path(vae),
        vqgan_config_path=_path(vae_config),
        clip=None if clip is None else str(clip),
        bpe_path=_path(bpe_path),
        hug=hug,
        chinese=chinese,
        device=device,
        dtype=dtype,
    )
    return assemble(parts)


def assemble(parts: Parts) -> Model:
    """The model that `parts` make up, its parts compared before any is built.

    Raises:
        Dalle3Error: a file is missing, broken or of the wrong kind, or the parts do not belong together.
    """
    device = pick_device(parts.device)
    dtype = pick_dtype(parts.dtype, device)
    path, adapter = find_dalle(parts)
    checkpoint = read_dalle(path, adapter, scale=parts.lora_scale)
    codec, codec_path = read_codec(parts, checkpoint, path)
    tokenizer = read_words(parts, checkpoint, adapter or path)
    check_codec(checkpoint, codec, dalle_path=path, codec_path=codec_path)
    check_tokenizer(checkpoint.config, tokenizer, dalle_path=path)
    return Model(
        dalle=cast(Dalle, build(checkpoint, device=device, dtype=dtype)),
        codec=build_codec(codec, device),
        tokenizer=tokenizer,
        open_clip=partial(_open_clip, parts.clip, path, tokenizer=tokenizer, device=device),
        checkpoints={"dalle": checkpoint, "codec": codec},
    )


def find_dalle(parts: Parts) -> tuple[Path, Path | None]:
    """Where the DALLE is, beside which its other parts may lie, and where its adapter is, if there is one.

    Raises:
        CheckpointError: there is no default model, or the DALLE of an adapter is not where it was.
        ConfigError: two flags name an adapter, or there is none to give a scale to.
    """
    path, adapter = parts.dalle_path and located(parts.dalle_path), parts.lora
    if path is not None and is_adapter(path):
        if adapter is not None:
            raise ConfigError(f"--dalle_path {path} is a LoRA adapter, and --lora names one too; leave one out")
        path, adapter = None, path
    if adapter is not None:
        read_as(adapter, LORA, flag="--lora")
        return path or base_of(adapter), adapter
    if parts.lora_scale != 1:
        raise ConfigError("--lora_scale is of use with a LoRA adapter only; name one with --lora")
    return path or default_model(), None


def read_dalle(path: Path, adapter: Path | None, *, scale: float) -> Checkpoint:
    """The DALLE at `path`, with the adapter added to its weights `scale` times.

    Raises:
        CheckpointError: one is missing, broken or of the wrong kind, or they do not belong together.
    """
    if adapter is None:
        return read_as(path, DALLE, flag="--dalle_path")
    return joined(adapter, base_path=path, scale=scale)


def check_codec(dalle: Checkpoint, codec: Checkpoint, *, dalle_path: Path, codec_path: Path) -> None:
    """Raises CheckpointError, naming each number that differs, unless `dalle` speaks the codes of `codec`.

    It does where it was trained with `codec`, or with one that lies beside it and makes the same codes of pictures.
    """
    if (differing := _differences(dalle, codec)) and not _known_by_its_own(dalle, codec):
        raise CheckpointError(
            f"{dalle_path} and {codec_path} do not belong together: the DALLE was trained with an image tokenizer "
            f"of {'; '.join(differing)}. Pass the one it was trained with as --vae_path"
        )


def _known_by_its_own(dalle: Checkpoint, codec: Checkpoint) -> bool:
    """Whether the image tokenizer beside `dalle` is the one it was trained with, and makes the codes of `codec`."""
    own = dalle.codec
    return own is not None and same_codes(own, codec) and not _differences(dalle, own)


def same_codes(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two image tokenizers differ at most in how they draw codes: one may be the other with a finer decoder."""
    if one.kind != other.kind or one.config != other.config or one.state.keys() != other.state.keys():
        return False
    drawing = tuple(f"{part}." for part in network_class(one.kind).drawing_parts)
    names = (name for name in one.state if not name.startswith(drawing))
    return all(torch.equal(one.state[name].double(), other.state[name].double()) for name in names)


def _differences(dalle: Checkpoint, codec: Checkpoint) -> list[str]:
    """In what an image tokenizer is not the one that a DALLE was trained with."""
    config: DalleConfig = dalle.config
    found = describe_codec(codec, grid=config.image_grid)
    expected = {**found, **(dalle.codec_info or {}), "vocab": config.num_image_tokens, "grid": config.image_grid}
    return [f"{key} {_short(expected[key])}, not {_short(found[key])}" for key in found if expected[key] != found[key]]


def check_tokenizer(config: DalleConfig, tokenizer: Tokenizer, *, dalle_path: Path) -> None:
    """Raises CheckpointError unless the text vocabularies are equally large."""
    if tokenizer.vocab_size != config.num_text_tokens:
        raise CheckpointError(
            f"{dalle_path} reads text of {config.num_text_tokens} tokens, but the {tokenizer.kind} tokenizer has "
            f"{tokenizer.vocab_size}; pass the one it was trained with as --bpe_path (with --hug or --chinese)"
        )


def _short(value: object) -> str:
    return str(value)[:12]


def read_codec(parts: Parts, dalle: Checkpoint, dalle_path: Path) -> tuple[Checkpoint, Path]:
    """The image tokenizer and its file: the one named, else the DALLE's own, else the one DALLE-pytorch downloaded."""
    path, config_path = parts.vae_path or parts.vqgan_model_path, parts.vqgan_config_path
    if path is None and dalle.codec is not None:
        return dalle.codec, dalle_path
    if path is None:
        path, config_path = downloaded_codec(parts.taming, asking=f"{dalle_path} does not hold its image tokenizer")
    flag = "--vqgan_model_path" if path == parts.vqgan_model_path else "--vae_path"
    return read_as(path, CODEC, flag=flag, config_path=config_path), path


def downloaded_codec(taming: bool, *, asking: str) -> tuple[Path, Path | None]:
    """The files of the image tokenizer that DALLE-pytorch takes, and downloads, where none is named.

    Args:
        taming: the VQGAN, not OpenAI's.
        asking: why they are looked for, the beginning of the message where they are absent.
    Raises:
        CheckpointError: it downloaded none.
    """
    cache = dalle_pytorch_cache()
    if taming and (cache / "vqgan.1024.model.ckpt").is_file():
        return cache / "vqgan.1024.model.ckpt", cache / "vqgan.1024.config.yml"
    if not taming and (cache / "encoder.pkl").is_file() and (cache / "decoder.pkl").is_file():
        return cache, None
    flags = "--vqgan_model_path and --vqgan_config_path" if taming else "--vae_path"
    raise CheckpointError(f"{asking}; pass the one it was trained with as {flags}")


def read_words(parts: Parts, dalle: Checkpoint, dalle_path: Path) -> Tokenizer:
    """The text tokenizer that the flags name, else the DALLE's own, else CLIP's."""
    named = parts.bpe_path or parts.hug or parts.chinese
    if dalle.tokenizer is not None and not named:
        return read_tokenizer(dalle_path, dalle.tokenizer)
    return load_tokenizer(parts.bpe_path, hug=parts.hug, chinese=parts.chinese)


def _open_clip(
    name: str | None, dalle_path: Path, *, tokenizer: Tokenizer, device: torch.device
) -> tuple[Scorer, Tokenize]:
    if name is None:
        return load_default_clip(dalle_path, device=device, tokenizer=tokenizer)
    return load_clip(name, device=device, tokenizer=tokenizer)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
