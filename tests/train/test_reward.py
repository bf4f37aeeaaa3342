"""A DALLE in training by reward: what it is rewarded for is drawn more, by the very chances it draws with."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dalle3.data.loader import Batch
from dalle3.decoding import Decoder
from dalle3.errors import ConfigError, DataError, PromptError
from dalle3.models.dalle import Dalle
from dalle3.sampling import Sampling
from dalle3.train.tasks.captions import caption_rows, read_captions
from dalle3.train.tasks.reward import Recognition, RewardConfig, RewardTask, advantages, log_chances
from tests.train.conftest import clip_task, reward_task

RED = torch.tensor([[3, 1, 0, 0, 0, 0]])
SETTINGS = {
    "plain": Sampling(),
    "guided": Sampling(cond_scale=3.0),
    "guided and filtered": Sampling(cond_scale=3.0, top_p=0.7),
    "few, and sharp": Sampling(top_k=3, temperature=0.6),
}


def lively(task: RewardTask) -> Dalle:
    """Its DALLE, with likes and dislikes."""
    with torch.no_grad():
        task.dalle.to_logits.weight.mul_(4)
    return task.dalle.eval()


def batch() -> Batch:
    return Batch(content=torch.arange(8).reshape(2, 2, 2), captions=("a red square", "blue"))


@pytest.mark.parametrize("how", SETTINGS)
def test_the_chances_are_those_the_decoder_draws_with(how: str) -> None:
    dalle, sampling, number = lively(reward_task()), SETTINGS[how], 4000
    decoder = Decoder(dalle)
    prefix = decoder.read(RED[0], cond_scale=sampling.cond_scale)
    drawn = decoder.draw(prefix, sampling, seed=0, indices=range(number)).clone()
    counts = Counter(tuple(codes) for codes in drawn.flatten(1).tolist())
    common = [codes for codes, count in counts.items() if count >= 100]
    assert len(common) >= 2
    codes = torch.tensor(common).view(-1, 2, 2)
    chances = log_chances(dalle, RED.expand(len(codes), -1), codes, sampling).sum(dim=1).exp()
    for codes, chance in zip(common, chances.tolist(), strict=True):
        assert counts[codes] / number == pytest.approx(chance, abs=4 * (chance * (1 - chance) / number) ** 0.5)


def test_what_was_drawn_has_a_chance_even_where_another_rounding_drops_it() -> None:
    dalle, sampling = lively(reward_task()), Sampling(top_k=1)
    every = torch.stack([torch.full((2, 2), code) for code in range(8)])
    chances = log_chances(dalle, RED.expand(8, -1), every, sampling)
    assert chances.isfinite().all()


def test_the_empty_caption_gets_no_gradient_of_its_own() -> None:
    dalle, codes = lively(reward_task()), torch.tensor([[[1, 2], [3, 4]]])
    log_chances(dalle, RED, codes, Sampling(cond_scale=3.0)).sum().backward()
    assert dalle.text_emb.weight.grad is not None
    touched = dalle.text_emb.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    pads = [dalle.config.num_text_tokens + position for position in range(2, 6)]
    assert touched == [0, 1, 3, *pads]  # 0 is <bos>; the empty caption would touch the pads of positions 0 and 1


def test_a_picture_is_compared_with_the_others_of_its_caption() -> None:
    found = advantages(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0], [-0.01, -0.02, -0.03]]))
    deviation = (14 / 2) ** 0.5  # of 1, 2 and 6
    expected = torch.tensor([1 - 4.0, 2 - 3.5, 6 - 1.5]) / (deviation + 1)
    assert torch.allclose(found[0], expected)
    assert found[1].tolist() == [0, 0, 0]
    assert found[2].abs().max() < 0.02


class Constant(torch.nn.Module):
    """A CLIP whose pictures are given, and whose captions are rows of the unit matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(9.0))  # more than a CLIP may have

    def encode_text(self, ids: Tensor) -> Tensor:
        return torch.eye(4)[ids[:, 0]]

    def encode_image(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1)[:, :4]


def test_the_reward_is_the_chance_of_the_caption_among_others_unlike_it() -> None:
    names = ["a", "b", "c", "d"]
    recognition = Recognition(
        Constant(), lambda texts: torch.tensor([[names.index(t)] for t in texts]), ["a", "b", "a"]
    )
    pictures = torch.tensor([[0.03, 0.02, 0.9, 0.0], [0.01, 0.05, 0.0, 0.9]]).view(2, 1, 2, 2)
    reward, recognised = recognition(pictures, "a")
    expected = [torch.tensor(row).mul(100).log_softmax(0)[0] for row in ([0.03, 0.02], [0.01, 0.05])]
    assert torch.allclose(reward, torch.stack(expected), atol=1e-6)
    assert recognised.tolist() == [True, False]


class Likes(Recognition):
    """Rewards pictures for the share of one of the codes, which is all that `codec.decode` shows of them."""

    def __init__(self) -> None:
        pass

    def __call__(self, pictures: Tensor, caption: str) -> tuple[Tensor, Tensor]:
        share = (pictures == (3 if "red" in caption else 5)).float().flatten(1).mean(dim=1)
        return share, share == 1


def test_what_is_rewarded_is_drawn_more_and_for_its_caption() -> None:
    task = reward_task(data_weight=0.0)
    task.recognition, task.rewards = Likes(), dataclasses.replace(task.rewards, group_size=16)
    task.codec.decode = lambda codes: codes  # type: ignore[method-assign, assignment]
    optimizer = torch.optim.Adam(task.objective.parameters(), lr=0.01)
    rng, rewards = torch.Generator().manual_seed(0), []
    for step in range(60):
        with torch.no_grad():
            inputs = task.prepare(batch(), step=step, rng=rng)
        loss, metrics = task.objective(**inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards.append(float(metrics["reward"]))
    assert sum(rewards[:5]) / 5 < 0.3
    assert sum(rewards[-5:]) / 5 > 0.8
    decoder = Decoder(task.dalle.eval())
    codes = [
        decoder.draw(decoder.read(row, cond_scale=2.0), task.sampling, seed=1, indices=range(20))
        for row in inputs["captions"][[0, 16]]
    ]
    assert [int(drawn.flatten().mode().values) for drawn in codes] == [3, 5]


@torch.no_grad()
def test_pictures_of_the_data_count_with_their_weight() -> None:
    def prepared(task: RewardTask) -> dict[str, Tensor]:
        return task.prepare(batch(), step=0, rng=torch.Generator().manual_seed(0))

    task, alone = reward_task(data_weight=0.5), reward_task(data_weight=0.0)
    inputs, drawn = prepared(task), prepared(alone)
    assert inputs.keys() - drawn.keys() == {"text", "codes"}
    loss, metrics = task.objective.eval()(**inputs)
    own = {name: value for name, value in inputs.items() if name in drawn}
    policy, others = task.objective(**own)
    usual, parts = task.dalle.loss(inputs["text"], inputs["codes"])
    assert float(loss - policy) == pytest.approx(0.5 * float(usual), rel=1e-4)
    assert metrics["image_loss"] == parts["image"]
    assert "image_loss" not in others


def test_captions_of_a_file_are_drawn_for_beside_the_data(tmp_path: Path) -> None:
    wishes = tmp_path / "wishes.txt"
    wishes.write_text("red\n\n  blue \n", encoding="utf-8")
    task = reward_task(data_weight=0.5, captions=wishes)
    asked: list[str] = []
    task.recognition = lambda pictures, caption: asked.append(caption) or (torch.zeros(2), torch.ones(2))  # type: ignore[assignment, func-returns-value]
    for step in range(10):
        inputs = task.prepare(batch(), step=step, rng=torch.Generator().manual_seed(step))
        expected = caption_rows(task.tokenizer, asked[-2:], 6, truncate=False)
        assert torch.equal(inputs["captions"], expected.repeat_interleave(len(inputs["captions"]) // 2, dim=0))
        assert torch.equal(inputs["codes"], batch().content)
    assert set(asked) == {"red", "blue"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"--captions .* cannot be read: No such file or directory"),
        (b"\n \n", r"--captions .* holds no caption; expected one a line"),
        (b"\xff\xfe", r"--captions .* cannot be read: it is not text in UTF-8"),
    ],
)
def test_a_file_without_captions_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "wishes.txt").write_bytes(content)
    with pytest.raises(DataError, match=said):
        reward_task(captions=tmp_path / "wishes.txt")


def test_a_mark_that_begins_a_file_is_no_part_of_its_first_caption(tmp_path: Path) -> None:
    (tmp_path / "wishes.txt").write_text("red\nblue\u2028green\n", encoding="utf-8-sig")
    assert read_captions(tmp_path / "wishes.txt") == ["red", "blue\u2028green"]


def test_a_caption_that_is_too_long_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "wishes.txt").write_text("red\n" + "a red square and " * 9, encoding="utf-8")
    with pytest.raises(PromptError, match="tokens long and the model reads 6"):
        reward_task(captions=tmp_path / "wishes.txt")


def test_drawing_is_without_dropout_and_training_goes_on_with_it() -> None:
    task = reward_task()
    task.objective.train()
    first, again = (task.prepare(batch(), step=0, rng=torch.Generator().manual_seed(0))["drawn"] for _ in range(2))
    assert torch.equal(first, again)
    assert task.dalle.training


def test_a_checkpoint_says_how_it_was_trained_to_draw() -> None:
    task = reward_task(top_p=0.8)
    recommended = task.checkpoint(task.model.state_dict()).recommended
    assert recommended.said == {"cond_scale": 2.0, "top_p": 0.8}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"group_size": 1}, "group_size is 1; it must be at least 2"),
        ({"among": 1}, "among is 1; it must be at least 2"),
        ({"data_weight": -0.1}, r"data_weight is -0\.1; it must be 0 or more"),
    ],
)
def test_settings_that_leave_nothing_to_compare_are_refused(given: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RewardConfig(**given)  # type: ignore[arg-type]


def test_a_model_that_always_draws_the_same_is_refused() -> None:
    with pytest.raises(ConfigError, match="temperature is 0; a DALLE that is rewarded must draw different pictures"):
        reward_task(temperature=0.0)


def test_the_clip_stays_as_it_is() -> None:
    clip = clip_task().model
    Recognition(clip, lambda texts: torch.ones(len(texts), 6, dtype=torch.long), ["a"])  # type: ignore[arg-type]
    assert not any(weights.requires_grad for weights in clip.parameters())
