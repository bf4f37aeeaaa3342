"""The mean of several trainings' weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import dalle3
from dalle3.checkpoint import Checkpoint, build, read_folder, save_checkpoint
from dalle3.cli import main
from dalle3.models.dalle import Dalle, DalleConfig, deepened
from dalle3.sampling import Recommended
from tests import tiny


def ends(folder: Path, checkpoint: Checkpoint, number: int = 3, **kept) -> list[Path]:
    """So many checkpoints, each an equal step further than the one before."""
    paths = [folder / f"end-{place}" for place in range(number)]
    for place, path in enumerate(paths):
        moved = {name: tensor + place for name, tensor in checkpoint.state.items()}
        save_checkpoint(dataclasses.replace(checkpoint, state=moved, training={"step": place}), path, **kept)
    return paths


def average(out: Path, paths: list[Path]) -> int:
    return main(["average", str(out), *map(str, paths)])


def complaint(capsys) -> str:
    """What was said of a mistake, in one line."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_every_weight_is_the_mean(tmp_path, capsys):
    codec = tiny.codec()
    assert average(tmp_path / "mean", ends(tmp_path, codec)) == 0
    found = read_folder(tmp_path / "mean")
    assert found.state.keys() == codec.state.keys()
    for name, tensor in codec.state.items():
        torch.testing.assert_close(found.state[name], tensor + 1)
    assert "mean of 3 models, discrete_vae" in capsys.readouterr().out


def test_the_mean_of_weights_in_half_the_bytes_is_rounded_once(tmp_path):
    codec = tiny.codec()
    for path, number in ((tmp_path / "low", 256), (tmp_path / "high", 258)):
        codec.state = {name: torch.full_like(tensor, number) for name, tensor in codec.state.items()}
        save_checkpoint(codec, path, dtype=torch.bfloat16)
    assert average(tmp_path / "mean", [*3 * [tmp_path / "low"], *5 * [tmp_path / "high"]]) == 0
    (number,) = {tensor.unique().item() for tensor in read_folder(tmp_path / "mean").state.values()}
    assert number == 258  # nearest to 257.25; sums in bfloat16 end at 2048, of which an eighth is 256


def test_a_mean_draws_with_all_that_lies_beside_the_first(tmp_path):
    model = tiny.dalle(image_codec=tiny.codec())
    model.recommended = Recommended(cond_scale=2.0, best_of=8)
    assert average(tmp_path / "mean", ends(tmp_path, model, tokenizer=tiny.tokenizer())) == 0
    found = read_folder(tmp_path / "mean")
    assert found.training is None
    assert found.recommended == Recommended(cond_scale=2.0)  # no CLIP is there to choose the best of 8
    assert dalle3.load(tmp_path / "mean").generate("a red circle", n=1, seed=0)[0].codes.shape == (4, 4)


def test_weights_shared_by_layers_stay_shared(tmp_path):
    base = tiny.dalle(image_codec=None).config
    config: DalleConfig = dataclasses.replace(base, shared_attn_ids=(0, 0), shared_ff_ids=(0, 0))
    paths = [tmp_path / name for name in "ab"]
    for seed, path in enumerate(paths):
        save_checkpoint(tiny.checkpoint("dalle", config, Dalle, seed=seed), path)
    assert average(tmp_path / "mean", paths) == 0
    network = build(read_folder(tmp_path / "mean"), device=torch.device("cpu"))
    names = dict(network.named_parameters(remove_duplicate=False))
    assert names["transformer.layers.0.1.fn.down.weight"] is names["transformer.layers.1.1.fn.down.weight"]


def test_a_dalle_that_got_layers_has_a_mean_with_what_it_began_with(tmp_path):
    begun = tiny.dalle(image_codec=tiny.codec())
    config = dataclasses.replace(begun.config, depth=begun.config.depth + 1)
    deeper = dataclasses.replace(begun, config=config, state=deepened(config, begun.state))
    moved = dataclasses.replace(deeper, state={name: tensor + 1 for name, tensor in deeper.state.items()})
    paths = [tmp_path / "end", tmp_path / "beginning"]
    for checkpoint, path in zip((moved, begun), paths, strict=True):
        save_checkpoint(checkpoint, path)
    assert average(tmp_path / "mean", paths) == 0
    found = read_folder(tmp_path / "mean")
    assert found.config == config
    for name, tensor in deeper.state.items():
        torch.testing.assert_close(found.state[name], tensor + 0.5)


@pytest.mark.parametrize(("ids", "what"), [(((0,), (0, 0)), "depth, shared_ff_ids"), (((0,), (0,)), "depth")])
def test_layers_that_share_weights_are_not_added_for_a_mean(tmp_path, capsys, ids, what):
    base = tiny.dalle(image_codec=None).config
    for depth, shared in enumerate(ids, start=1):
        config = dataclasses.replace(base, depth=depth, shared_ff_ids=shared)
        save_checkpoint(tiny.checkpoint("dalle", config, Dalle, seed=0), tmp_path / str(depth))
    assert average(tmp_path / "mean", [tmp_path / "2", tmp_path / "1"]) == 2
    assert f"another configuration ({what})" in complaint(capsys)


def test_one_model_has_no_mean(tmp_path, capsys):
    assert average(tmp_path / "mean", ends(tmp_path, tiny.codec(), 1)) == 2
    assert "name two models or more" in complaint(capsys)


def test_models_of_different_makes_have_no_mean(tmp_path, capsys):
    (own,) = ends(tmp_path, tiny.codec(), 1)
    others = {
        "another kind (clip)": tiny.clip(),
        "another configuration (num_tokens)": tiny.codec(num_tokens=2 * tiny.CODES),
    }
    for number, (what, other) in enumerate(others.items()):
        save_checkpoint(other, tmp_path / f"other-{number}")
        assert average(tmp_path / "mean", [own, tmp_path / f"other-{number}"]) == 2
        assert what in complaint(capsys)
    assert not (tmp_path / "mean").exists()


def test_dalles_of_different_tokenizers_have_no_mean(tmp_path, capsys):
    for seed in (0, 1):
        save_checkpoint(tiny.dalle(image_codec=tiny.codec(seed=seed)), tmp_path / f"codes-{seed}")
    assert average(tmp_path / "mean", [tmp_path / "codes-0", tmp_path / "codes-1"]) == 2
    assert "another image tokenizer" in complaint(capsys)
    paths = ends(tmp_path, tiny.dalle(image_codec=tiny.codec()), 2, tokenizer=tiny.tokenizer())
    words = paths[1] / "tokenizer.json"
    words.write_text(words.read_text().replace('"great"', '"grand"'))
    assert average(tmp_path / "mean", paths) == 2
    assert "another text tokenizer" in complaint(capsys)


def test_what_is_there_already_is_not_written_over(tmp_path, capsys):
    paths = ends(tmp_path, tiny.codec(), 2)
    before = (paths[0] / "model.safetensors").read_bytes()
    assert average(paths[0], paths) == 2
    assert str(paths[0]) in complaint(capsys)
    assert (paths[0] / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_a_model_without_a_file_is_named(tmp_path, capsys, missing):
    paths = ends(tmp_path, tiny.codec(), 2)
    (paths[1] / missing).unlink()
    assert average(tmp_path / "mean", paths) == 2
    assert str(paths[1]) in complaint(capsys)
