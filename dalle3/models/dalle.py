"""DALLE: a transformer over a caption and the codes of its picture.

From "Zero-shot text-to-image generation" (arXiv:2102.12092). One implementation for the DALL-3 fork, dalle-pytorch
1.1.4 and 1.6.6; what sets them apart is in the configuration.

Shapes: B batch, L caption tokens, T = L + 1 caption positions with <bos>, M picture positions, D width,
V text vocabulary with one pad id for each caption position, C image codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle3.config import option
from dalle3.errors import CodesError, ConfigError, PromptError
from dalle3.models.clip_text import ClipTextConfig
from dalle3.models.maps import CaptionMaps, ClipMaps
from dalle3.nn.attention import Attention, Record, stable_softmax
from dalle3.nn.cross_entropy import linear_cross_entropy
from dalle3.nn.feedforward import GatedFeedForward
from dalle3.nn.positions import ATTENTION_TYPES, GridRotary, TokenShift, attention_mask
from dalle3.nn.transformer import Branch, Transformer, layer_scale

FF_MULT = 4
LAYERS = "transformer.layers."  # what the names of their weights begin with
STABLE_GRADIENT = 0.1  # share of the embedding gradient that passes under stable_softmax (CogView)


@dataclass(frozen=True, kw_only=True)
class DalleConfig:
    """Hyper-parameters of `Dalle`, under dalle-pytorch's names where it has one."""

    num_text_tokens: int = option(help="entries of the text vocabulary, pad ids not counted")
    text_seq_len: int = option(256, help="caption tokens the model reads")
    num_image_tokens: int = option(help="entries of the image tokenizer's codebook")
    image_grid: int = option(16, help="codes along a side of the picture")
    dim: int = option(512, help="model width")
    depth: int = option(2, help="layers")
    heads: int = option(8, help="attention heads")
    dim_head: int = option(64, help="width of a head")
    attn_types: tuple[str, ...] = option(
        ("full",), help="attention of the layers in turn: " + ", ".join(ATTENTION_TYPES)
    )
    reversible: bool = option(False, help="two residual streams, averaged at the end")
    attn_dropout: float = option(0.0, help="dropout after attention")
    ff_dropout: float = option(0.0, help="dropout inside the feed-forward layers")
    loss_img_weight: float = option(7.0, help="weight of the image loss against a text loss of 1")
    stable_softmax: bool = option(False, help="CogView's measures against overflow in half precision")
    sandwich_norm: bool = option(False, help="a second norm behind every branch")
    shift_tokens: bool = option(True, help="lend each position channels of its neighbours")
    rotary_emb: bool = option(True, help="rotary instead of learned positions")
    shared_attn_ids: tuple[int, ...] | None = option(None, help="which attention each layer uses, for shared weights")
    shared_ff_ids: tuple[int, ...] | None = option(None, help="which feed-forward each layer uses")
    share_input_output_emb: bool = option(False, help="one matrix for embeddings and logits")
    caption_maps: int = option(0, help="channels of the map that each word lays under the picture; 0: none")
    clip_maps: int = option(0, help="channels of the map that CLIP's reading of the caption lays there; 0: none")
    clip_text: ClipTextConfig | None = option(None, help="the sizes of what reads captions as that CLIP does")

    def __post_init__(self) -> None:
        for kind in self.attn_types:
            _check_attention_type(kind)
        for name in ("dim", "depth", "heads", "dim_head", "text_seq_len", "num_image_tokens", "image_grid"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("caption_maps", "clip_maps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.dim_head % 2 or self.dim % 4:
            raise ConfigError(f"dim is {self.dim} and dim_head {self.dim_head}; they must divide by 4 and by 2")

    @property
    def text_len(self) -> int:
        """Caption positions, T: <bos> and the tokens."""
        return self.text_seq_len + 1

    @property
    def image_seq_len(self) -> int:
        """Picture positions of a whole picture, M."""
        return self.image_grid**2

    @property
    def num_text_ids(self) -> int:
        """V: the vocabulary and one pad id for each caption position."""
        return self.num_text_tokens + self.text_seq_len

    @property
    def num_tokens(self) -> int:
        """Text ids and image codes together, V + C."""
        return self.num_text_ids + self.num_image_tokens

    @property
    def shares_layers(self) -> bool:
        """Whether layers share weights, so that none can be added or left out alone."""
        return bool(self.shared_attn_ids or self.shared_ff_ids)

    def layer_attn_types(self) -> list[str]:
        """The attention type of each layer."""
        return list(islice(cycle(self.attn_types), self.depth))


def _check_attention_type(kind: str) -> None:
    reasons = {
        "sparse": "it needs DeepSpeed's block-sparse CUDA kernels, which no current release can build",
        "mlp": "its gMLP layers have fixed spatial weights that no release of g-mlp-pytorch still loads",
    }
    if kind in reasons:
        raise ConfigError(f'attention type "{kind}" cannot be run: {reasons[kind]}')
    if kind not in ATTENTION_TYPES:
        raise ConfigError(f'attention type "{kind}" is unknown; it may be {", ".join(ATTENTION_TYPES)}')


class AxialPositions(nn.Module):
    """Learned positions of a square grid: one vector for each row plus one for each column."""

    def __init__(self, grid: int, dim: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(grid, dim))
        self.cols = nn.Parameter(torch.randn(grid, dim))

    def forward(self) -> Tensor:
        """The vectors of all codes, (grid * grid, D), row by row."""
        return (self.rows[:, None] + self.cols[None]).flatten(0, 1)


class Dalle(nn.Module):
    """Caption and codes in, logits of the next token out."""

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        self.config = config
        if not config.share_input_output_emb:
            self.text_emb = nn.Embedding(config.num_text_ids, config.dim)
            self.image_emb = nn.Embedding(config.num_image_tokens, config.dim)
        if not config.rotary_emb:
            self.text_pos = nn.Embedding(config.text_len, config.dim)
            self.image_pos = AxialPositions(config.image_grid, config.dim)
        self.caption_maps = CaptionMaps(config) if config.caption_maps else None
        self.clip_maps = ClipMaps(config) if config.clip_maps else None
        self.transformer = build_transformer(config)
        self.norm = nn.LayerNorm(config.dim)
        self.to_logits = nn.Linear(config.dim, config.num_tokens)

    def forward(self, text: Tensor, codes: Tensor | None = None) -> Tensor:
        """Logits (B, N, V + C) of what follows each position; ids that cannot follow get the lowest float.

        Args:
            text: (B, L) ids, 0 where blank; a row of zeros is the null caption.
            codes: (B, m), the first m codes of the pictures row by row, or maps (B, h, w). A whole picture's
                last code is not read, as nothing follows it.
        Raises:
            PromptError: the captions are not L tokens long.
            CodesError: there are more codes than a picture has.
        """
        x = self.embed(text, codes)
        logits = self.to_logits(self.hidden(x))
        position = torch.arange(x.shape[1], device=x.device)[:, None]
        is_text = torch.arange(self.config.num_tokens, device=x.device) < self.config.num_text_ids
        follows_text = position < self.config.text_seq_len
        return logits.masked_fill(is_text != follows_text, -torch.finfo(logits.dtype).max)

    def loss(
        self, text: Tensor, codes: Tensor, read: Tensor | None = None, meant: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss and its parts, cross-entropies in nats: {"text", "image"}.

        Args:
            text: (B, L) ids, 0 where blank.
            codes: (B, M) or (B, h, w), whole pictures.
            read: what the model reads in place of `codes`, which it has to predict all the same.
            meant: the captions (B, L) that CLIP's maps are of, in place of `text`.
        """
        c, read = self.config, codes if read is None else read
        hidden = self.hidden(self.embed(text, read, meant)).split([c.text_seq_len, c.image_seq_len], dim=1)
        sizes = [c.num_text_ids, c.num_image_tokens]
        weights, biases = self.to_logits.weight.split(sizes), self.to_logits.bias.split(sizes)
        targets = {"text": self.fill_blanks(text), "image": codes}
        parts = {
            name: linear_cross_entropy(x.flatten(0, 1), weight, bias, target.flatten())
            for (name, target), x, weight, bias in zip(targets.items(), hidden, weights, biases, strict=True)
        }
        return (parts["text"] + c.loss_img_weight * parts["image"]) / (c.loss_img_weight + 1), parts

    def embed(self, text: Tensor, codes: Tensor | None = None, meant: Tensor | None = None) -> Tensor:
        """Places captions (B, L) and codes (B, m) in one sequence (B, T + m, D), as `forward` and `loss` describe."""
        c = self.config
        if text.shape[-1] != c.text_seq_len:
            raise PromptError(f"captions of {text.shape[-1]} tokens; the model reads {c.text_seq_len}: pad them with 0")
        x = self.embed_text(text)
        if codes is not None and codes.numel():
            codes = codes.flatten(1)
            if codes.shape[1] > c.image_seq_len:
                raise CodesError(f"{codes.shape[1]} codes; a picture of this model has {c.image_seq_len}")
            x = torch.cat([x, self.embed_codes(codes[:, : c.image_seq_len - 1])], dim=1)
        if (maps := self.maps(text, meant)) is not None:
            caption, picture = x.split([c.text_seq_len, x.shape[1] - c.text_seq_len], dim=1)
            x = torch.cat([caption, picture + maps[:, : picture.shape[1]]], dim=1)
        if c.stable_softmax:
            x = x * STABLE_GRADIENT + x.detach() * (1 - STABLE_GRADIENT)
        return x

    def maps(self, text: Tensor, meant: Tensor | None = None) -> Tensor | None:
        """What captions (B, L) add where each code is predicted, (B, M, D); None where the model has no maps.

        Args:
            meant: as in `loss`.
        """
        words = None if self.caption_maps is None else self.caption_maps(text)
        if self.clip_maps is None:
            return words
        whole = self.clip_maps(text if meant is None else meant)
        return whole if words is None else words + whole

    def embed_text(self, text: Tensor) -> Tensor:
        """Captions (B, l <= L) behind <bos>, (B, 1 + l, D)."""
        ids = F.pad(self.fill_blanks(text), (1, 0))
        x = F.embedding(ids, self.text_table())
        return x if self.config.rotary_emb else x + self.text_pos.weight[: ids.shape[1]]

    def embed_codes(self, codes: Tensor, start: int = 0) -> Tensor:
        """Codes (B, m) that stand at picture positions `start` and on, (B, m, D)."""
        x = F.embedding(codes, self.image_table())
        return x if self.config.rotary_emb else x + self.image_pos()[start : start + codes.shape[1]]

    def fill_blanks(self, text: Tensor) -> Tensor:
        """Ids (B, l) with every 0 replaced by the pad id of its position."""
        pads = torch.arange(text.shape[-1], device=text.device) + self.config.num_text_tokens
        return torch.where(text == 0, pads, text)

    def hidden(self, x: Tensor, records: Sequence[Record] | None = None) -> Tensor:
        """What the logits are read from, (B, N, D), of embeddings (B, N, D); `records` as `Transformer`'s."""
        return self.norm(self.steady(self.transformer(x, records=records)))

    def steady(self, x: Tensor) -> Tensor:
        """`x` (..., D) divided by its largest channel under stable_softmax."""
        return x / x.amax(dim=-1, keepdim=True).detach() if self.config.stable_softmax else x

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of the next caption token."""
        v = self.config.num_text_ids
        return F.linear(hidden, self.to_logits.weight[:v], self.to_logits.bias[:v])

    def image_logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., C) of the next code."""
        v = self.config.num_text_ids
        return F.linear(hidden, self.to_logits.weight[v:], self.to_logits.bias[v:])

    def text_table(self) -> Tensor:
        """The vectors of text ids, (V, D)."""
        shared = self.config.share_input_output_emb
        return self.to_logits.weight[: self.config.num_text_ids] if shared else self.text_emb.weight

    def image_table(self) -> Tensor:
        """The vectors of codes, (C, D)."""
        shared = self.config.share_input_output_emb
        return self.to_logits.weight[self.config.num_text_ids :] if shared else self.image_emb.weight


def with_maps(config: DalleConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a DALLE, with fresh maps of a kind where `config` has some and `state` none yet."""
    wanted = {"caption_maps": (config.caption_maps, CaptionMaps), "clip_maps": (config.clip_maps, ClipMaps)}
    for name, (channels, kind) in wanted.items():
        if channels and not any(key.startswith(f"{name}.") for key in state):
            state = state | kind(config).state_dict(prefix=f"{name}.")
    return state


def deepened(config: DalleConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a DALLE of fewer layers than `config` has, its last ones once more behind them.

    What these add is scaled by 0 at first, so the model starts as it was, and learns how much of them to take
    (stacking: Gong et al., "Efficient training of BERT by progressively stacking", 2019).

    Raises:
        ConfigError: layers share weights, of which none can be added alone.
    """
    before = 1 + max(int(name.split(".")[2]) for name in state if name.startswith(LAYERS))
    if before == config.depth:
        return state
    if config.shares_layers:
        raise ConfigError("layers of this DALLE share weights, so it cannot become deeper; leave --depth out")
    added = {}
    for layer in range(before, config.depth):
        source, target = f"{LAYERS}{(layer - config.depth) % before}.", f"{LAYERS}{layer}."
        for name in (name for name in state if name.startswith(source)):
            weight = torch.zeros_like(state[name]) if name.endswith(".scale") else state[name]
            added[target + name.removeprefix(source)] = weight
    return state | added


def build_transformer(config: DalleConfig) -> Transformer:
    """The layers of `config`; layers with one shared id hold one module."""
    rotate = GridRotary(config.dim_head, config.text_len, config.image_grid) if config.rotary_emb else None
    shift = TokenShift(config.text_len, config.image_grid) if config.shift_tokens else None
    attentions = _shared(config.shared_attn_ids, config, lambda kind: _attention(config, kind, rotate))
    feedforwards = _shared(config.shared_ff_ids, config, lambda kind: _feedforward(config))
    layers = [
        [
            Branch(
                fn,
                pre=nn.LayerNorm(config.dim),
                shift=shift,
                post=nn.LayerNorm(config.dim) if config.sandwich_norm else None,
                scale=torch.full((config.dim,), layer_scale(depth)),
            )
            for fn in pair
        ]
        for depth, pair in enumerate(zip(attentions, feedforwards, strict=True), start=1)
    ]
    return Transformer(layers, reversible=config.reversible)


def _attention(config: DalleConfig, kind: str, rotate: GridRotary | None) -> Attention:
    full = kind == "full"
    return Attention(
        config.dim,
        config.heads,
        config.dim_head,
        causal=full,
        mask=None if full else attention_mask(kind, config.text_len, config.image_grid),
        rotate=rotate,
        softmax=stable_softmax if config.stable_softmax else None,
        dropout=config.attn_dropout,
    )


def _feedforward(config: DalleConfig) -> GatedFeedForward:
    return GatedFeedForward(config.dim, FF_MULT * config.dim, dropout=config.ff_dropout)


def _shared(ids: tuple[int, ...] | None, config: DalleConfig, make) -> list[nn.Module]:
    """One module for each layer, the same one where `ids` repeat.

    Raises:
        ConfigError: layers that share an attention have different attention types.
    """
    made: dict[int, tuple[str, nn.Module]] = {}
    modules = []
    for layer, (shared, kind) in enumerate(
        zip(cycle(ids or range(config.depth)), config.layer_attn_types(), strict=False)
    ):
        if shared not in made:
            made[shared] = (kind, make(kind))
        first_kind, module = made[shared]
        if isinstance(module, Attention) and first_kind != kind:
            raise ConfigError(
                f"layer {layer} is {kind} but shares the attention of a {first_kind} layer; "
                "align attn_types and shared_attn_ids"
            )
        modules.append(module)
    return modules
