"""Fast decoding: captions are read once, then codes are drawn one at a time for many pictures of each together.

What makes it fast: a caption's keys and values are computed and stored once for all pictures of it; only the
newest position goes through the layers; layers that see few codes read only those; only the logits of codes are
computed; the caption and the empty caption of guidance are rows of one batch; and a position runs through code made
for it, in C on a CPU (`nn/native.py`), else in operators over packed weights (`nn/packed.py`).

Shapes: C captions, G groups (the captions, and under guidance as many times the empty one), n pictures of each
caption, R = G * n rows, P rows padded to what the engine likes best, H heads, K width of a head, D model width,
L caption tokens, T = L + 1 caption positions with <bos>, m codes that pictures start with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dalle3.errors import CodesError
from dalle3.models.dalle import Dalle
from dalle3.nn import native
from dalle3.nn.attention import Record
from dalle3.nn.cache import KeyValues, ShiftLine, ShiftRing
from dalle3.nn.native import NativeEngine
from dalle3.nn.packed import PackedEngine, Step
from dalle3.sampling import Noise, Sampling, draw, guide

OnToken = Callable[[int, int], None]  # (codes drawn so far, codes of a picture)
MEMORY_OF_PICTURES = 2 * 1024**3  # bytes


@dataclass(frozen=True)
class Prefix:
    """What the layers remember of captions and of the codes that all their pictures start with.

    Attributes:
        captions: C.
        hidden: (G, D), what the logits of the next code are read from.
        records: of each branch; attention's "keys" and "values" (G, H, T + m, K), the shift's "shifted" (G, T + m, D).
        codes: (m,), the codes given.
        maps: (G, M, D), what captions add to the embeddings from which each of a picture's M codes is predicted;
            None where the model has no maps.
    """

    captions: int
    hidden: Tensor
    records: list[Record]
    codes: Tensor
    maps: Tensor | None


class Decoder:
    """Draws codes from a `Dalle`, whose weights must not change while it lives."""

    def __init__(self, model: Dalle, engine: NativeEngine | PackedEngine | None = None) -> None:
        """Lays out the weights of `model` in `engine`, by default the fastest that this machine has for them."""
        self.model, self.config = model, model.config
        weight, bias, v = model.to_logits.weight, model.to_logits.bias, self.config.num_text_ids
        self.engine = engine or (NativeEngine() if native.supports(model.transformer) else PackedEngine(weight.dtype))
        self.to_text_logits = self.engine.linear(weight[:v], bias[:v])
        self.to_image_logits = self.engine.linear(weight[v:], bias[v:])
        self.branches = [self.engine.branch(b) for layer in model.transformer.layers for b in layer.children()]
        self.norm = [p.detach().to(self.engine.dtype) for p in (model.norm.weight, model.norm.bias)]

    def pictures_at_once(self, sampling: Sampling) -> int:
        """How many pictures are best drawn together: many share the reading of weights, but each has a memory."""
        config, bytes_each = self.config, 4 if self.device.type == "cpu" else self.engine.dtype.itemsize
        groups = 1 if sampling.cond_scale == 1 else 2
        keys_and_values = 2 * config.depth * config.heads * config.dim_head * config.image_seq_len
        return min(max(MEMORY_OF_PICTURES // (groups * keys_and_values * bytes_each), 4), 16)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.to_logits.weight.device

    @torch.inference_mode()
    def read(self, text: Tensor, *, cond_scale: float = 1.0, prime: Tensor | None = None) -> Prefix:
        """The prefix of one caption (L,) or of several (C, L), and of the codes (m,) that their pictures start with.

        Raises:
            CodesError: `prime` leaves no code to draw.
        """
        codes = torch.empty(0, dtype=torch.long) if prime is None else prime.flatten()
        if len(codes) >= self.config.image_seq_len:
            raise CodesError(f"{len(codes)} codes to start with; a picture has {self.config.image_seq_len} in all")
        captions = text.reshape(-1, text.shape[-1])
        texts = torch.cat([captions, torch.zeros_like(captions)] if cond_scale != 1 else [captions]).to(self.device)
        records: list[Record] = [{} for _ in self.branches]
        x = self.model.embed(texts, codes.to(self.device).expand(len(texts), -1))
        return Prefix(
            captions=len(captions),
            hidden=self.model.hidden(x, records)[:, -1],
            records=records,
            codes=codes.to(self.device),
            maps=self.model.maps(texts),
        )

    @torch.inference_mode()
    def draw(
        self,
        prefix: Prefix,
        sampling: Sampling,
        *,
        seed: int | Sequence[int],
        indices: Sequence[int],
        on_token: OnToken | None = None,
    ) -> Tensor:
        """The codes (C * n, h, w), int64 on the CPU, of the pictures `indices` of each caption, one after the other.

        Picture i of a caption is the same in any company.

        Args:
            prefix: read with the same `cond_scale`.
            seed: of all captions, or one of each.
            on_token: called after each code with how many are drawn and how many a picture has.
        """
        config, given = self.config, len(prefix.codes)
        seeds = [seed] * prefix.captions if isinstance(seed, int) else seed
        noise = Noise(seeds, "image", indices, config.num_image_tokens)
        codes = torch.empty(len(seeds) * len(indices), config.image_seq_len, dtype=torch.long, device=self.device)
        codes[:, :given] = prefix.codes
        pictures = _Pictures(self, prefix, len(indices))
        hidden = prefix.hidden.repeat_interleave(len(indices), dim=0)
        for position in range(given, config.image_seq_len):
            if position > given:
                hidden = pictures.step(codes[:, position - 1], position - 1)
            logits = self.to_image_logits(hidden)[: pictures.rows].float()
            if sampling.cond_scale != 1:
                logits = guide(logits, sampling.cond_scale)
            codes[:, position] = draw(logits, sampling, noise, num_tokens=config.num_tokens)
            if on_token is not None:
                on_token(position + 1, config.image_seq_len)
        return codes.unflatten(1, (config.image_grid, config.image_grid)).cpu()

    @torch.inference_mode()
    def complete(self, text: Tensor, sampling: Sampling, *, seed: int) -> Tensor:
        """Caption ids (L,), 0 where blank, that begin with those of `text` and end where the model leaves a blank."""
        config, ids = self.config, text.clone()
        given = int((ids != 0).sum())
        noise = Noise([seed], "text", [0], config.num_text_ids)
        caption = _Caption(self, ids[:given])
        hidden = caption.hidden
        for position in range(given, config.text_seq_len):
            if position > given:
                hidden = caption.step(ids[position - 1], position)
            logits = self.to_text_logits(hidden)[:1].float()
            drawn = int(draw(logits, sampling, noise, num_tokens=config.num_tokens))
            if drawn >= config.num_text_tokens or drawn == 0:
                break
            ids[position] = drawn
        return ids

    def advance(self, x: Tensor, position: int, steps: Sequence[Step]) -> Tensor:
        """What the next logits are read from, (P, D), of the newest position's embedding `x` (P, D), which is used up.

        Args:
            position: in the whole sequence, <bos> being 0.
            steps: the branches, bound to their memories.
        """
        streams = [x, x.clone()] if self.config.reversible else [x]
        for index, step in enumerate(steps):
            # of two streams, attention reads the second and adds to the first, the feed-forward the reverse
            target, source = (index % 2, 1 - index % 2) if self.config.reversible else (0, 0)
            streams[target] = step(streams[target], streams[source], position)
        y = (streams[0] + streams[1]) / 2 if self.config.reversible else streams[0]
        return F.layer_norm(self.model.steady(y), (self.config.dim,), self.norm[0], self.norm[1], self.model.norm.eps)

    def rows(self, x: Tensor) -> Tensor:
        """Embeddings (R, D) as the engine takes them, (P, D)."""
        return F.pad(x.to(self.engine.dtype), (0, 0, 0, max(self.engine.min_rows - len(x), 0)))


class _Pictures:
    """The growing memory of n pictures of each caption."""

    def __init__(self, decoder: Decoder, prefix: Prefix, pictures: int) -> None:
        config = decoder.config
        self.decoder, self.pictures, self.rows = decoder, pictures, len(prefix.hidden) * pictures
        self.positions = None if config.rotary_emb else decoder.model.image_pos()
        self.maps = prefix.maps
        kinds = [kind for kind in config.layer_attn_types() for _ in range(2)]
        self.steps = [
            branch.bind(self._lender(record, pictures), self._cache(record, kind, pictures), self.rows)
            for branch, record, kind in zip(decoder.branches, prefix.records, kinds, strict=True)
        ]

    def step(self, codes: Tensor, position: int) -> Tensor:
        """Reads the code (C * n,) of each picture at `position`; what the next logits are read from, (P, D)."""
        x = F.embedding(codes, self.decoder.model.image_table())
        if self.positions is not None:
            x = x + self.positions[position]
        x = x.repeat(self.rows // len(codes), 1)
        if self.maps is not None:
            x = x + self.maps[:, position + 1].repeat_interleave(self.pictures, dim=0)
        x = self.decoder.rows(x)
        return self.decoder.advance(x, self.decoder.config.text_len + position, self.steps)

    def _lender(self, record: Record, pictures: int) -> ShiftRing | None:
        if "shifted" not in record:
            return None
        config, engine, seen = self.decoder.config, self.decoder.engine, record["shifted"]
        rows = max(self.rows, engine.min_rows)
        ring = ShiftRing(rows=rows, dim=config.dim, grid=config.image_grid, dtype=engine.dtype, device=seen.device)
        ring.extend(seen[:, config.text_len :], pictures)
        return ring

    def _cache(self, record: Record, kind: str, pictures: int) -> KeyValues | None:
        if "keys" not in record:
            return None
        config, seen = self.decoder.config, torch.stack([record["keys"], record["values"]])
        caption, codes = seen[..., : config.text_len, :], seen[..., config.text_len :, :]
        cache = KeyValues(kind, grid=config.image_grid, pictures=pictures, caption=caption, size=config.image_seq_len)
        cache.extend(codes)
        return cache


class _Caption:
    """The growing memory of one caption."""

    def __init__(self, decoder: Decoder, ids: Tensor) -> None:
        records: list[Record] = [{} for _ in decoder.branches]
        self.decoder = decoder
        self.hidden = decoder.model.hidden(decoder.model.embed_text(ids[None].to(decoder.device)), records)[:, -1]
        self.steps = [
            branch.bind(self._lender(record), self._cache(record), 1)
            for branch, record in zip(decoder.branches, records, strict=True)
        ]

    def step(self, id: Tensor, position: int) -> Tensor:
        """Reads the token at `position` of the sequence, <bos> being 0; what the next logits are read from, (P, D)."""
        model = self.decoder.model
        x = F.embedding(id.to(self.decoder.device)[None], model.text_table())
        if not self.decoder.config.rotary_emb:
            x = x + model.text_pos.weight[position]
        return self.decoder.advance(self.decoder.rows(x), position, self.steps)

    def _lender(self, record: Record) -> ShiftLine | None:
        if "shifted" not in record:
            return None
        engine, seen = self.decoder.engine, record["shifted"]
        line = ShiftLine(rows=engine.min_rows, dim=seen.shape[-1], dtype=engine.dtype, device=seen.device)
        line.extend(seen)
        return line

    def _cache(self, record: Record) -> KeyValues | None:
        if "keys" not in record:
            return None
        seen = torch.stack([record["keys"], record["values"]])
        return KeyValues("full", grid=1, pictures=1, caption=seen, size=self.decoder.config.text_len - seen.shape[3])
