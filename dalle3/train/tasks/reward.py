"""Training a DALLE by reward: it draws, a CLIP says how surely it knows the captions, and what did well is drawn more.

The gradient is REINFORCE's, with the mean of a caption's other pictures as baseline (arXiv:2402.14740) and their
deviation as measure (arXiv:2402.03300), of the very distribution that draws: guided, filtered, of this step's weights.

Shapes: B captions, G pictures of each, L caption tokens, h w grid of codes, M codes of a picture, C image codes,
E width of CLIP's space.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dalle3.checkpoint import Checkpoint
from dalle3.config import option
from dalle3.data.loader import Batch
from dalle3.decoding import Decoder
from dalle3.errors import ConfigError
from dalle3.models.clip import MAX_LOGIT_SCALE
from dalle3.models.dalle import Dalle
from dalle3.rerank import Scorer, Tokenize
from dalle3.sampling import Recommended, Sampling, guide, keep_likeliest
from dalle3.train.task import Metrics
from dalle3.train.tasks.captions import caption_rows, read_captions
from dalle3.train.tasks.dalle import DalleObjective, DalleTask


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What is drawn, and what it is measured by."""

    group_size: int = option(8, help="pictures drawn for each caption and compared; --batch_size counts captions")
    among: int = option(100, help="captions among which the CLIP has to find the one a picture was drawn for")
    captions: Path | None = option(
        None, help="a text file of captions to draw for, one a line (default: those of the pictures)"
    )
    data_weight: float = option(0.1, help="weight of the usual loss, on the captions' own pictures; 0: none")

    def __post_init__(self) -> None:
        """Raises ConfigError for what leaves nothing to compare, and for negative weights."""
        for name in ("group_size", "among"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 2")
        if self.data_weight < 0:
            raise ConfigError(f"data_weight is {self.data_weight}; it must be 0 or more")


class Recognition:
    """How surely a CLIP finds a picture's caption among others.

    Args:
        clip: stays as it is.
        others: captions to choose from beside the picture's own; of those that are equal to it, none counts.
    """

    def __init__(self, clip: Scorer, tokenize: Tokenize, others: Sequence[str]) -> None:
        assert isinstance(clip, nn.Module)
        self._clip, self._tokenize, self.others = clip.eval().requires_grad_(False), tokenize, list(others)
        self._features = self._read(self.others)
        self._scale = min(float(cast(Tensor, clip.logit_scale)), MAX_LOGIT_SCALE)

    @torch.no_grad()
    def __call__(self, pictures: Tensor, caption: str) -> tuple[Tensor, Tensor]:
        """The log-probability (G,) of `caption` for pictures (G, 3, H, W) in [0, 1], and where it is the likeliest."""
        seen, own = self._clip.encode_image(pictures), self._read([caption])
        different = torch.tensor([other != caption for other in self.others], device=own.device)
        logits = math.exp(self._scale) * seen @ torch.cat([own, self._features[different]]).mT
        return logits.log_softmax(-1)[:, 0], logits.argmax(-1) == 0

    def _read(self, captions: list[str]) -> Tensor:
        return self._clip.encode_text(self._tokenize(captions).to(self._clip.logit_scale.device))  # type: ignore[attr-defined]


def log_chances(dalle: Dalle, text: Tensor, codes: Tensor, sampling: Sampling) -> Tensor:
    """The log-probabilities (B, M) with which `Decoder.draw` draws each code, given those before it.

    No gradient flows through the empty caption's logits: what guidance starts from stays, and the caption's move.

    Args:
        text: (B, L) ids.
        codes: (B, h, w), drawn so.
    """
    logits = _image_logits(dalle, text, codes)
    if sampling.cond_scale != 1:
        with torch.no_grad():
            empty = _image_logits(dalle, torch.zeros_like(text), codes)
        logits = guide(torch.cat([logits, empty]), sampling.cond_scale)
    targets = codes.flatten()[:, None]
    with torch.no_grad():
        count = sampling.count(dalle.config.num_tokens, logits.shape[-1])
        # what was drawn was kept, whatever another rounding says
        dropped = keep_likeliest(logits, count, sampling.top_p).isinf().scatter(1, targets, False)
    logs = (logits / sampling.temperature).masked_fill(dropped, -torch.inf).log_softmax(-1)
    return logs.gather(1, targets).view(len(codes), -1)


def _image_logits(dalle: Dalle, text: Tensor, codes: Tensor) -> Tensor:
    """Logits (B * M, C), float32, of every code."""
    hidden = dalle.hidden(dalle.embed(text, codes))[:, dalle.config.text_seq_len :]
    return dalle.image_logits(hidden.flatten(0, 1)).float()


class RewardObjective(DalleObjective):
    """The policy's loss, and some of the usual one, which keeps the model at what pictures look like."""

    def __init__(self, dalle: Dalle, sampling: Sampling, data_weight: float) -> None:
        super().__init__(dalle)
        self.sampling, self.data_weight = sampling, data_weight

    def forward(  # type: ignore[override]
        self, *, captions: Tensor, drawn: Tensor, rewards: Tensor, recognised: Tensor, **data: Tensor
    ) -> tuple[Tensor, Metrics]:
        """The loss, and how the pictures did.

        Args:
            captions: (B * G, L) ids of what was drawn.
            drawn: codes (B * G, h, w).
            rewards: (B, G).
            recognised: (B, G) bool.
            data: what `DalleObjective.forward` takes; nothing where it has no weight.
        """
        chances = log_chances(self.dalle, captions, drawn, self.sampling)
        loss = -(advantages(rewards).view(-1, 1) * chances).mean()
        metrics = {"reward": rewards.mean(), "recognised": recognised.float().mean()}
        if not data:
            return loss, metrics
        usual, parts = super().forward(**data)
        return loss + self.data_weight * usual, {**metrics, **parts}


class RewardTask(DalleTask):
    """A DALLE that is rewarded for what a CLIP recognises.

    Args:
        base: the DALLE as it would learn from pictures alone.
        recognition: gives the rewards.
        draws: how the model draws, here and by its checkpoints' recommendation.
    Raises:
        ConfigError: it would draw the same picture every time.
        DataError: the file of captions cannot be read.
        PromptError: a caption in it is too long.
    """

    def __init__(self, base: DalleTask, recognition: Recognition, config: RewardConfig, *, draws: Recommended) -> None:
        super().__init__(base.dalle, base.codec, base.tokenizer, base.config)  # type: ignore[arg-type]
        self.recognition, self.rewards, self.draws = recognition, config, draws
        self.sampling = check_draws(draws)
        self.objective = RewardObjective(base.dalle, self.sampling, config.data_weight)
        self.wishes = read_captions(config.captions) if config.captions else []
        self._rows(self.wishes)  # what is too long is said now, not in an hour

    def prepare(self, batch: Batch, *, step: int, rng: torch.Generator) -> dict[str, Any]:
        """Pictures drawn for the captions of the batch, and rewards; its own pictures, where they have a weight."""
        data = super().prepare(batch, step=step, rng=rng) if self.rewards.data_weight else {}
        captions, device = self._captions(batch, rng), self.codec_device
        rows = self._rows(captions)
        drawn = self._draw_groups(rows, seed=int(torch.randint(2**31, (), generator=rng)))
        found = [
            self.recognition(self.codec.decode(codes), caption) for codes, caption in zip(drawn, captions, strict=True)
        ]
        rewards, recognised = (torch.stack(values) for values in zip(*found, strict=True))
        return {
            **data,
            "captions": rows.to(device).repeat_interleave(self.rewards.group_size, dim=0),
            "drawn": drawn.flatten(0, 1),
            "rewards": rewards,
            "recognised": recognised,
        }

    def _captions(self, batch: Batch, rng: torch.Generator) -> Sequence[str]:
        """What to draw: captions of the file, as many as the batch has, or the batch's own."""
        if not self.wishes:
            return batch.captions
        return [self.wishes[place] for place in torch.randint(len(self.wishes), (len(batch.captions),), generator=rng)]

    def _rows(self, captions: Sequence[str]) -> Tensor:
        length, truncate = self.dalle.config.text_seq_len, self.config.truncate_captions
        return caption_rows(self.tokenizer, captions, length, truncate=truncate)

    def _draw_groups(self, rows: Tensor, *, seed: int) -> Tensor:
        """Codes (B, G, h, w) drawn for captions (B, L) by the weights of now."""
        size, groups = self.rewards.group_size, []
        with _evaluating(self.dalle):
            decoder = Decoder(self.dalle)
            for number, row in enumerate(rows):
                prefix = decoder.read(row, cond_scale=self.sampling.cond_scale)
                indices = range(number * size, (number + 1) * size)
                groups.append(decoder.draw(prefix, self.sampling, seed=seed, indices=indices))
        return torch.stack(groups).to(self.codec_device)

    def checkpoint(self, state: dict[str, Tensor]) -> Checkpoint:
        """The DALLE with its image tokenizer, and how it was trained to draw."""
        return dataclasses.replace(super().checkpoint(state), recommended=self.draws)


def check_draws(draws: Recommended) -> Sampling:
    """How a DALLE draws that is to draw as `draws` says; raises ConfigError where every picture would be the same."""
    sampling = draws.settled(Recommended())
    if sampling.temperature == 0:
        raise ConfigError("temperature is 0; a DALLE that is rewarded must draw different pictures: make it above 0")
    return sampling


def advantages(rewards: Tensor) -> Tensor:
    """How much better than its caption's other pictures each of (B, G) is, (B, G).

    The difference from their mean, over the group's deviation and one nat: captions that are hopeless, whose pictures
    differ most, do not drown the others, and differences among pictures that are all right stay small.
    """
    size = rewards.shape[1]
    differences = (rewards - rewards.mean(dim=1, keepdim=True)) * (size / (size - 1))
    return differences / (rewards.std(dim=1, keepdim=True) + 1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
