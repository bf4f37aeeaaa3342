"""Codes that a DALLE has a say in."""

from __future__ import annotations

import json

import pytest
import torch

from dalle3.checkpoint import build, save_checkpoint
from dalle3.cli import main
from dalle3.data.codes import CodeShards
from dalle3.models.dalle import Dalle
from dalle3.models.discrete_vae import DiscreteVAE
from dalle3.models.vqgan import VQGAN, VQGANConfig
from dalle3.train.likelier import LikelierCodes
from tests import tiny
from tests.train.processes import material

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def codec() -> DiscreteVAE:
    found = build(tiny.codec(), device=CPU)
    assert isinstance(found, DiscreteVAE)
    return found


@pytest.fixture(scope="module")
def dalle() -> Dalle:
    found = build(tiny.dalle(image_codec=None), device=CPU)
    assert isinstance(found, Dalle)
    return found


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_each_code_is_the_best_of_fit_and_of_what_the_dalle_expects_without_a_caption(codec, dalle, images):
    plain = codec.encode(images)
    no_caption = torch.zeros(3, dalle.config.text_seq_len, dtype=torch.long)
    expected = dalle(no_caption, plain)[:, dalle.config.text_seq_len :, dalle.config.num_text_ids :].log_softmax(-1)
    fits = codec.scores(images).log_softmax(1).flatten(2).mT
    best = (fits + 3 * expected).max(-1).values
    codes = LikelierCodes(codec, dalle, weight=3).encode(images)
    chosen = (fits + 3 * expected).gather(-1, codes.flatten(1)[..., None])[..., 0]
    assert (best - chosen).max() < 0.05  # the DALLE speaks in bfloat16 there
    assert codes.shape == plain.shape
    assert (codes != plain).float().mean() > 0.1


def test_a_dalle_whose_word_counts_next_to_nothing_changes_nothing(codec, dalle, images):
    assert torch.equal(LikelierCodes(codec, dalle, weight=1e-6).encode(images), codec.encode(images))


@pytest.mark.parametrize("kind", ["discrete_vae", "gumbel_vq", "openai_dvae"])
def test_the_likeliest_code_is_the_plain_one_in_every_tokenizer_that_has_scores(kind, images):
    tokenizer = {"discrete_vae": tiny.codec(), "gumbel_vq": tiny_gumbel(), "openai_dvae": tiny_openai()}[kind]
    network = build(tokenizer, device=CPU)
    assert torch.equal(network.scores(images).argmax(1), network.encode(images))


def tiny_gumbel():
    from dalle3.models.vqgan import GumbelVQ, GumbelVQConfig

    sizes = {"resolution": 16, "ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": ()}
    config = GumbelVQConfig(num_tokens=16, embed_dim=8, z_channels=8, **sizes)
    return tiny.checkpoint("gumbel_vq", config, GumbelVQ)


def tiny_openai():
    from dalle3.models.openai_dvae import OpenAIDiscreteVAE, OpenAIDiscreteVAEConfig

    config = OpenAIDiscreteVAEConfig(num_tokens=16, image_size=16, n_hid=8, n_init=8, n_blk_per_group=1)
    return tiny.checkpoint("openai_dvae", config, OpenAIDiscreteVAE)


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    found = {name: str(path) for name, path in material(folder).items()}
    save_checkpoint(tiny.dalle(image_codec=tiny.codec()), folder / "dalle", tokenizer=tiny.tokenizer())
    return {**found, "prior": str(folder / "dalle")}


def encode(**flags: object) -> int:
    return main(["encode", *(str(part) for name, value in flags.items() for part in (f"--{name}", value))])


def codes(folder) -> torch.Tensor:
    return CodeShards(sorted(folder.glob("codes-*.safetensors"))).codes


def test_the_command_writes_codes_of_the_same_tokenizer_and_notes_the_prior(flags, tmp_path):
    plain = {name: value for name, value in flags.items() if name != "prior"}
    assert encode(**plain, out=tmp_path / "plain") == 0
    assert encode(**flags, prior_weight=3, out=tmp_path / "likelier") == 0
    assert (codes(tmp_path / "plain") != codes(tmp_path / "likelier")).any()
    notes = [json.loads((tmp_path / name / "encode.json").read_text()) for name in ("plain", "likelier")]
    assert notes[0]["codec"] == notes[1]["codec"]
    assert notes[1]["prior"]["weight"] == 3
    assert "prior" not in notes[0]


def test_codes_with_and_without_a_prior_do_not_mix(flags, tmp_path, capfd):
    assert encode(**flags, out=tmp_path) == 0
    del (without := dict(flags))["prior"]
    assert encode(**without, out=tmp_path) == 2
    assert "was begun with prior {" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prior_weight": 0}, "prior_weight is 0.0; it must be above 0"),
        ({"image_grid": 2}, "draws 4 codes a side and pictures become 2"),
        ({"vae_path": "other"}, "do not belong together"),
        ({"vae_path": "nearest"}, "is a VQGAN, whose codes are the nearest entries"),
        ({"prior": "other"}, "is a discrete_vae, not a DALLE, which --prior takes"),
    ],
)
def test_a_prior_that_cannot_have_a_say_is_one_line(changed, said, flags, tmp_path, capfd):
    save_checkpoint(tiny.codec(seed=1), tmp_path / "other")
    sizes = {"resolution": 16, "ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": ()}
    nearest = VQGANConfig(num_tokens=16, embed_dim=8, z_channels=8, **sizes)
    save_checkpoint(tiny.checkpoint("vqgan", nearest, VQGAN), tmp_path / "nearest")
    changed = {name: tmp_path / value if isinstance(value, str) else value for name, value in changed.items()}
    assert encode(**{**flags, **changed, "out": tmp_path / "codes"}) == 2
    said_lines = capfd.readouterr().err.splitlines()
    assert said in said_lines[-1]
    assert not (tmp_path / "codes").exists()
