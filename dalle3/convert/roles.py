"""Which flag wants which kind of model, and the one line that says so where files were swapped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dalle3.checkpoint import CODECS, Checkpoint
from dalle3.convert import read
from dalle3.convert.guided_diffusion import Layout, LayoutError
from dalle3.convert.lora import KIND as LORA_KIND
from dalle3.convert.lora import joined
from dalle3.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Role:
    """A place a model can take.

    Attributes:
        name: of what takes it, with its article.
        kinds: of checkpoints that can.
        flag: that wants it.
    """

    name: str
    kinds: tuple[str, ...]
    flag: str


DALLE = Role(name="a DALLE", kinds=("dalle",), flag="--dalle_path")
LORA = Role(name="a LoRA adapter", kinds=(LORA_KIND,), flag="--lora")
CODEC = Role(name="an image tokenizer", kinds=CODECS, flag="--vae_path")
CLIP = Role(name="a CLIP", kinds=("clip", "dalle_clip"), flag="--clip")
DECODER = Role(
    name="a diffusion decoder", kinds=("unet",), flag="--model_path of decode.py or --decoder of generate.py"
)
UPSAMPLER = Role(name="an upsampler", kinds=("super_res_unet",), flag="--upsampler")
ROLES = (DALLE, LORA, CODEC, CLIP, DECODER, UPSAMPLER)


def read_as(
    path: Path, *roles: Role, flag: str, config_path: Path | None = None, layout: Layout | None = None
) -> Checkpoint:
    """The checkpoint at `path`, which takes one of `roles`; an adapter with its DALLE is a DALLE.

    Args:
        path: as `convert.read` takes it.
        roles: what `flag` takes.
        flag: what the user gave it as.
        config_path: as in `convert.read`.
        layout: as in `convert.read`.
    Raises:
        CheckpointError: as `convert.read`, and where the file is of another kind: which, and which flag wants it.
    """
    try:
        checkpoint = read(path, config_path=config_path, layout=layout)
    except LayoutError as error:
        if DECODER in roles or UPSAMPLER in roles:
            raise
        raise _swapped(path, error.kind, roles, flag) from None
    if checkpoint.kind == LORA_KIND and DALLE in roles:
        return joined(path)
    check_role(checkpoint, *roles, path=path, flag=flag)
    return checkpoint


def check_role(checkpoint: Checkpoint, *roles: Role, path: Path, flag: str) -> None:
    """Raises CheckpointError, naming what it is and the flag that wants it, unless it takes one of `roles`."""
    if not any(checkpoint.kind in role.kinds for role in roles):
        raise _swapped(path, checkpoint.kind, roles, flag)


def _swapped(path: Path, kind: str, roles: tuple[Role, ...], flag: str) -> CheckpointError:
    wanted = " or ".join(role.name for role in roles)
    found = next(role for role in ROLES if kind in role.kinds)
    article = "an" if kind.startswith("o") else "a"
    other = found.name[0].upper() + found.name[1:]
    return CheckpointError(
        f"{path} is {article} {kind}, not {wanted}, which {flag} takes. {other} belongs to {found.flag}"
    )
