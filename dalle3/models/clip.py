"""CLIP: one space for pictures and captions (arXiv:2103.00020), over the layers of `transformers`.

It ranks the pictures drawn for a prompt, steers the diffusion decoder, and is trained here at small sizes.
Parameter names are those of a Hugging Face CLIP, so `model.safetensors` of either kind holds the same keys.

Shapes: B batch, N text positions, S the side of the picture the network reads, E width of the shared space.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle3.config import option
from dalle3.errors import CheckpointError, ConfigError, DependencyError, ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's training pictures, red green blue, in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_LOGIT_SCALE = math.log(100)  # training keeps `Clip.logit_scale` at or below this (section 2.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """A CLIP; the default sizes are those of ViT-B/16."""

    embed_dim: int = option(512, help="width of the space pictures and captions share")
    image_size: int = option(224, help="side of the picture the network reads, in pixels")
    patch_size: int = option(16, help="side of a patch, in pixels")
    vision_width: int = option(768, help="width of the picture transformer")
    vision_layers: int = option(12, help="layers of the picture transformer")
    vision_heads: int = option(12, help="attention heads of the picture transformer")
    context_length: int = option(77, help="longest caption, in tokens")
    vocab_size: int = option(49408, help="entries of the text vocabulary")
    text_width: int = option(512, help="width of the text transformer")
    text_layers: int = option(12, help="layers of the text transformer")
    text_heads: int = option(8, help="attention heads of the text transformer")
    activation: Literal["quick_gelu", "gelu"] = option("quick_gelu", help="activation of the feed-forwards")
    text_end: Literal["highest_id", "last_id"] = option(
        "last_id",
        help="where a caption is read out: at the last id that is not 0, or at its highest id, which in published "
        "CLIPs is the end-of-text token that their tokenizer puts behind it",
    )

    def __post_init__(self) -> None:
        """Raises ConfigError where two sizes do not go together."""
        for what, whole, part in (
            ("image_size and patch_size", self.image_size, self.patch_size),
            ("vision_width and vision_heads", self.vision_width, self.vision_heads),
            ("text_width and text_heads", self.text_width, self.text_heads),
        ):
            if part < 1 or whole < part or whole % part:
                raise ConfigError(
                    f"{what} of a CLIP are {whole} and {part}; the first must be a multiple of the second"
                )


class Clip(nn.Module):
    """A CLIP with a vision transformer. Features come out at unit length, so their product is a cosine."""

    logit_scale: nn.Parameter  # the logarithm of what cosines are multiplied with in the loss

    def __init__(self, config: ClipConfig) -> None:
        """Draws new weights from the global generator, as the modules of torch do.

        Raises:
            DependencyError: `transformers` is not installed.
        """
        super().__init__()
        self.config = config
        whole = _hugging_face_model(config)
        self.text_model, self.vision_model = whole.text_model, whole.vision_model
        self.text_projection, self.visual_projection = whole.text_projection, whole.visual_projection
        self.logit_scale = whole.logit_scale

    @property
    def image_size(self) -> int:
        """S, in pixels."""
        return self.config.image_size

    def encode_text(self, ids: Tensor) -> Tensor:
        """Unit vectors (B, E), float32, of captions (B, N), N at most `context_length`."""
        return F.normalize(self.project_text(ids).float(), dim=-1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Unit vectors (B, E), float32, of pictures (B, 3, H, W) in [0, 1] of any size; differentiable."""
        return F.normalize(self.project_image(self.prepare(pixels)).float(), dim=-1)

    def score(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Cosines in [-1, 1], (pictures, captions), of unit vectors (pictures, E) and (captions, E)."""
        return image_features @ text_features.mT

    def prepare(self, pixels: Tensor) -> Tensor:
        """What the network reads, (B, 3, S, S), normalised, of pictures (B, 3, H, W) in [0, 1]."""
        return normalise(fit(pixels, self.image_size))

    def project_text(self, ids: Tensor) -> Tensor:
        """Features (B, E) of captions (B, N), of the length the projection gives them."""
        states = self.text_model(input_ids=ids).last_hidden_state  # (B, N, text_width)
        end = _end_of_text(ids, self.config.text_end)
        return self.text_projection(states[torch.arange(len(ids), device=ids.device), end])

    def project_image(self, inputs: Tensor) -> Tensor:
        """Features (B, E) of prepared pictures (B, 3, S, S), of the length the projection gives them."""
        return self.visual_projection(self.vision_model(pixel_values=inputs).pooler_output)


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """The mean, in nats, of naming each picture's caption and each caption's picture in the batch.

    Args:
        image_features: (B, E) unit vectors.
        text_features: (B, E) unit vectors; row i belongs to picture i.
        logit_scale: the logarithm of the factor on the cosines.
    From "Learning Transferable Visual Models", figure 3 (arXiv:2103.00020).
    """
    logits = logit_scale.exp() * image_features @ text_features.mT
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.mT, own)) / 2


def from_openai(state: dict[str, Tensor]) -> tuple[ClipConfig, dict[str, Tensor]]:
    """The configuration and our float32 weights of an OpenAI CLIP, every size read from the shapes in `state`.

    OpenAI's heads are all 64 wide, so their number follows from the widths.

    Raises:
        CheckpointError: not a CLIP of OpenAI, one with a ResNet, or weights of an unknown name.
    """
    if "visual.layer1.0.conv1.weight" in state:
        raise CheckpointError(
            "this CLIP sees with a ResNet, which is not supported; use ViT-B-32, ViT-B-16, ViT-L-14 or ViT-L-14-336px"
        )
    missing = [name for name in _OPENAI_SIZES if name not in state]
    if missing:
        raise CheckpointError(f"these are not the weights of an OpenAI CLIP: {', '.join(missing)} not found among them")
    ours: dict[str, Tensor] = {}
    for name, weight in state.items():
        if name not in _OPENAI_NUMBERS:
            ours.update(_rename(name, weight.float()))
    return _openai_config(state), ours


_OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # the archives repeat these as scalars
_OPENAI_SIZES = (
    "visual.conv1.weight",
    "visual.positional_embedding",
    "positional_embedding",
    "token_embedding.weight",
    "text_projection",
)
_OPENAI_NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.proj": "visual_projection.weight",
}
_OPENAI_PREFIXES = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",  # sic, in transformers
    "visual.ln_post.": "vision_model.post_layernorm.",
    "ln_final.": "text_model.final_layer_norm.",
}
_OPENAI_PARTS = {
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


def _rename(name: str, weight: Tensor) -> dict[str, Tensor]:
    """One OpenAI weight under our names; the joint projection of queries, keys and values becomes three."""
    if name in ("text_projection", "visual.proj"):
        weight = weight.T.contiguous()
    if name in _OPENAI_NAMES:
        return {_OPENAI_NAMES[name]: weight}
    prefix = next((prefix for prefix in _OPENAI_PREFIXES if name.startswith(prefix)), None)
    if prefix is None:
        raise CheckpointError(f"{name} is not a weight of an OpenAI CLIP; is this another kind of model?")
    ours = _OPENAI_PREFIXES[prefix] + name[len(prefix) :]
    if ".attn.in_proj_" in ours:
        layer, kind = ours.split(".attn.in_proj_")
        return {
            f"{layer}.self_attn.{part}_proj.{kind}": rows for part, rows in zip("qkv", weight.chunk(3), strict=True)
        }
    for part, replacement in _OPENAI_PARTS.items():
        ours = ours.replace(part, replacement)
    return {ours: weight}


def _openai_config(state: dict[str, Tensor]) -> ClipConfig:
    vision_width, _, patch_size, _ = state["visual.conv1.weight"].shape
    vocab_size, text_width = state["token_embedding.weight"].shape
    return ClipConfig(
        embed_dim=state["text_projection"].shape[1],
        image_size=patch_size * math.isqrt(state["visual.positional_embedding"].shape[0] - 1),
        patch_size=patch_size,
        vision_width=vision_width,
        vision_layers=_count_layers(state, "visual.transformer.resblocks."),
        vision_heads=max(1, vision_width // 64),
        context_length=state["positional_embedding"].shape[0],
        vocab_size=vocab_size,
        text_width=text_width,
        text_layers=_count_layers(state, "transformer.resblocks."),
        text_heads=max(1, text_width // 64),
        text_end="highest_id",
    )


def _count_layers(state: dict[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def fit(pixels: Tensor, size: int) -> Tensor:
    """Pictures (B, 3, size, size) of (B, 3, H, W): the shorter side resized to `size`, then the middle cut out.

    Bicubic and antialiased, as `read_picture` but without rounding to bytes; differentiable.

    Raises:
        ImageError: not a batch of three-channel pictures.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ImageError(f"pictures of shape {tuple(pixels.shape)}; CLIP takes (B, 3, H, W)")
    height, width = pixels.shape[-2:]
    new_height, new_width = _resized(height, size, width), _resized(width, size, height)
    for shape in ((height, new_width), (new_height, new_width)):  # across, then down, each cut to range, as PIL does
        if shape != pixels.shape[-2:]:
            pixels = _resize(pixels, shape)
    top, left = _margin(new_height, size), _margin(new_width, size)
    return pixels[:, :, top : top + size, left : left + size]


def read_picture(image: Image, size: int) -> Tensor:
    """A picture (3, size, size) in [0, 1] from a PIL image, resized and cropped as OpenAI's `clip` does, to the bit.

    `Clip.encode_image` only normalises it, as it has the right size.
    """
    from PIL import Image as Pil

    width, height = image.size
    image = image.resize((_resized(width, size, height), _resized(height, size, width)), Pil.Resampling.BICUBIC)
    left, top = _margin(image.width, size), _margin(image.height, size)
    image = image.crop((left, top, left + size, top + size)).convert("RGB")
    rows = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return rows.view(size, size, 3).permute(2, 0, 1).float() / 255


def normalise(pixels: Tensor) -> Tensor:
    """Pictures (..., 3, H, W) in [0, 1] with OpenAI's mean taken off and divided by its standard deviation."""
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def _resize(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    pixels = F.interpolate(pixels.float(), size=shape, mode="bicubic", antialias=True)
    return pixels + (pixels.clamp(0, 1) - pixels).detach()  # the value is cut to [0, 1], the gradient is not


def _resized(side: int, size: int, other: int) -> int:
    return size if side <= other else int(size * side / other)


def _margin(side: int, size: int) -> int:
    return round((side - size) / 2)  # half to even, as torchvision's centre crop


def _end_of_text(ids: Tensor, rule: Literal["highest_id", "last_id"]) -> Tensor:
    """The positions (B,) at which captions (B, N) are read out."""
    if rule == "last_id":
        positions = torch.arange(ids.shape[1], device=ids.device)
        return (positions * (ids != 0)).amax(dim=1)
    before = ids != ids.amax(dim=1, keepdim=True)
    return before.long().cumprod(dim=1).sum(dim=1)  # the first of equals: Hugging Face pads with end-of-text


def _hugging_face_model(config: ClipConfig) -> Any:
    # Naming the sub-module skips the lazy look-up of the whole package: 2.6 s instead of 3.0 s.
    try:
        from transformers.models.clip import configuration_clip
        from transformers.models.clip.modeling_clip import CLIPModel
    except ImportError as error:
        raise DependencyError('CLIP needs the package transformers: pip install "dalle3[clip]"') from error
    text = configuration_clip.CLIPTextConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context_length,
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        bos_token_id=0,  # unused here; the defaults lie outside a small vocabulary, which is warned about
        eos_token_id=config.vocab_size - 1,
        pad_token_id=0,
        **_shared(config),
    )
    vision = configuration_clip.CLIPVisionConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.vision_width,
        intermediate_size=4 * config.vision_width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_heads,
        **_shared(config),
    )
    return CLIPModel(
        configuration_clip.CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.embed_dim)
    )


def _shared(config: ClipConfig) -> dict[str, Any]:
    return {"projection_dim": config.embed_dim, "hidden_act": config.activation}
