"""`dalle3 evaluate` as its users call it, on a tiny model with random weights."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

import dalle3
from dalle3.assess import SEEDS, DrawSettings, Kept, TextToImage
from dalle3.checkpoint import save_checkpoint
from dalle3.cli import main
from dalle3.cli.evaluate import name_splits
from dalle3.data.open import open_pictures
from dalle3.data.transforms import to_tensor
from dalle3.errors import ConfigError
from dalle3.evaluate.examples import read_examples
from dalle3.sampling import Recommended
from dalle3.tokenizers.base import tokenize
from tests import tiny

COLORS, SHAPES = ("red", "blue"), ("circle", "square")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A model with both stages, and two data sets."""
    folder = tmp_path_factory.mktemp("world")
    tiny.write_model(folder / "model")
    save_checkpoint(tiny.decoder(), folder / "model" / "decoder")
    for split, seed in (("val", 0), ("held", 1)):
        write_pictures(folder / split, seed=seed)
    return folder


def write_pictures(folder: Path, *, seed: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(4):
        pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {COLORS[number % 2]} {SHAPES[number // 2]}")


@pytest.fixture(autouse=True)
def _there(world, tmp_path, monkeypatch):
    monkeypatch.setenv("DALLE3_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def evaluate(line: str) -> int:
    return main(["evaluate", *shlex.split(line)])


def measured(line: str) -> dict:
    """The report of an evaluation that went well."""
    assert evaluate(f"{line} --json report.json") == 0
    return json.loads(Path("report.json").read_text())["splits"]


def test_an_image_tokenizer_is_measured_on_each_data_set(world, capsys):
    found = measured(f"codec --vae_path {world}/model/codec --clip {world}/model/clip --data {world}/val {world}/held")
    assert list(found) == ["val", "held"]
    (row,) = found["val"]
    assert set(row) == {"number", "psnr", "psnr_mean", "codebook_use", "perplexity", "frechet"}
    assert row["number"] == 4
    assert 1 / tiny.CODES <= row["codebook_use"] <= 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["val", "held"]


def test_a_decoder_is_measured_beside_the_pictures_of_the_codes(world):
    found = measured(f"decoder --model_path {world}/model --steps 2 --data {world}/val")
    assert [row["pictures"] for row in found["val"]] == ["codes, enlarged", "decoded", "originals"]
    assert all({"psnr", "frechet", "clip_score"} < set(row) for row in found["val"][:2])
    assert set(found["val"][2]) == {"pictures", "number", "clip_score"}


def test_a_decoder_is_measured_on_pictures_without_captions_too(world, tmp_path):
    shutil.copytree(world / "val", tmp_path / "bare", ignore=shutil.ignore_patterns("*.txt"))
    found = measured(f"decoder --model_path {world}/model --steps 2 --data bare")
    assert all({"psnr", "frechet"} < set(row) and "clip_score" not in row for row in found["bare"])


def test_without_a_clip_a_decoder_has_no_frechet_distance_and_says_so(world, capsys, tmp_path):
    save_checkpoint(tiny.decoder(), tmp_path / "alone" / "decoder")
    found = measured(f"decoder --model_path alone --vae_path {world}/model/codec --steps 1 --data {world}/val")
    assert "frechet" not in found["val"][0]
    assert "no Fréchet distance" in capsys.readouterr().err


def test_text_to_image_is_measured_for_each_guidance_and_each_number_of_candidates(world):
    flags = "--cond_scales 1,3 --best_of 1,2 --among 3 --diffusion --steps 1"
    rows = measured(f"text --dalle_path {world}/model {flags} --data {world}/val")["val"]
    names = [(row["pictures"], row.get("cond_scale"), row.get("best_of")) for row in rows]
    drawn = [(kind, scale, number) for scale in (1, 3) for number in (1, 2) for kind in ("drawn", "decoded")]
    assert names == [("real", None, None), *drawn]
    assert all(row["among"] == 3 and 0 <= row["r_precision"] <= 1 and -1 <= row["clip_score"] <= 1 for row in rows)
    best = {(row["cond_scale"], row["best_of"]): row["clip_score"] for row in rows if row["pictures"] == "drawn"}
    assert best[1, 2] >= best[1, 1]


def test_the_loss_of_real_pictures_is_that_of_their_codes(world):
    real, *drawn = measured(f"text --dalle_path {world}/model --among 3 --data {world}/val")["val"]
    model = dalle3.load(world / "model")
    source = open_pictures(str(world / "val"), columns="", needs_captions=True)
    (examples,) = read_examples(source, tiny.GRID * model.codec.factor, number=None, seed=0)
    text = tokenize(model.tokenizer, list(examples.captions), model.dalle.config.text_seq_len)
    for name, ids in (("loss", text), ("uncaptioned", 0 * text)):
        logits = model.dalle(ids, codes := model.codec.encode(examples.pictures))[:, -(tiny.GRID**2) :]
        logits = logits[..., -model.dalle.config.num_image_tokens :]
        assert real[name] == pytest.approx(cross_entropy(logits.flatten(0, 1), codes.flatten()).item())
    assert all("loss" not in row for row in drawn)


def test_another_judge_gives_its_own_figures_of_what_the_models_clip_chose(world):
    other, rng = tiny.clip(), torch.Generator().manual_seed(0)
    other.state = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=rng) for name, tensor in other.state.items()
    }
    save_checkpoint(other, Path("other"), tokenizer=tiny.tokenizer())
    line = f"text --dalle_path {world}/model --best_of 1,2 --data {world}/val"
    own, judged = rows_of(line), rows_of(f"{line} --judge other")
    swapped = rows_of(f"{line} --clip other")
    for row in (None, 1):
        assert judged[row] == swapped[row] != own[row]  # the pictures are the same, chosen or not
    assert judged[2]["clip_score"] <= swapped[2]["clip_score"]  # the judge did not choose them
    decoded = f"decoder --model_path {world}/model --steps 2 --data {world}/val"
    scores = []
    for flags in ("", "--judge other", "--clip other"):
        Path("report.json").unlink()
        scores.append(measured(f"{decoded} {flags}")["val"][2]["clip_score"])
    assert scores[1] == scores[2] != scores[0]


def rows_of(line: str) -> dict[int | None, dict]:
    """The rows of an evaluation on val, by how many pictures each is the best of."""
    Path("report.json").unlink(missing_ok=True)
    return {row.get("best_of"): row for row in measured(line)["val"]}


def test_a_report_states_the_settings_that_the_parts_recommend(world):
    choosy = dataclasses.replace(
        tiny.dalle(image_codec=tiny.codec()), recommended=Recommended(cond_scale=3, top_k=5, best_of=2)
    )
    save_checkpoint(choosy, Path("choosy"), tokenizer=tiny.tokenizer())
    shutil.copytree(world / "model" / "clip", "choosy/clip")
    decoder = tiny.decoder()
    decoder.config = dataclasses.replace(decoder.config, guidance_scale=1.5)
    save_checkpoint(decoder, Path("choosy/decoder"))
    rows = measured(f"text --dalle_path choosy --diffusion --data {world}/val")["val"]
    assert [row.get("cond_scale") for row in rows] == [None, 3, 3]
    assert [row.get("best_of") for row in rows] == [None, 2, 2]
    about = json.loads(Path("report.json").read_text())["about"]
    assert about["settings"].items() >= {"cond_scales": [3], "top_p": None, "top_k": 5, "temperature": 1}.items()
    assert about["decoding"].items() >= {"timestep_respacing": "angle4", "guidance_scale": 1.5}.items()


def test_a_report_does_not_take_one_data_set_for_another_of_its_name(world, capsys):
    measured(f"codec --vae_path {world}/model/codec --data {world}/val")
    shutil.copytree(world / "held", "val")
    assert evaluate(f"codec --vae_path {world}/model/codec --data val --json report.json") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"holds figures of val from {world}/val; name the other one, as in --data val2=" in line
    assert set(measured(f"codec --vae_path {world}/model/codec --data val2=val")) == {"val", "val2"}


def test_a_seed_always_gives_the_same_figures_and_another_one_others(world):
    def figures(seed: int) -> dict:
        Path("report.json").unlink(missing_ok=True)
        return measured(f"text --dalle_path {world}/model --seed {seed} --data {world}/val")

    assert figures(1) == figures(1) != figures(2)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_what_is_measured_is_what_generate_draws_whatever_is_drawn_at_once(world, batch_size):
    model, captions = dalle3.load(world / "model"), ["a red circle", "a blue circle", "a red square"]
    settings = DrawSettings(best_of=(3,), batch_size=batch_size, top_p=0.8).settled(model.recommended)
    measuring = TextToImage(model=model, settings=settings, seed=2, kept=Kept(None))
    codes, features, _ = measuring.draw(captions, cond_scale=2.0)
    for number, caption in enumerate(captions):
        pictures = model.generate(caption, 3, top_p=0.8, cond_scale=2.0, best_of=1, seed=2 * SEEDS + number)
        assert torch.equal(codes[number], torch.stack([torch.from_numpy(picture.codes) for picture in pictures]))
        seen = torch.stack([to_tensor(picture.image) for picture in pictures]).float() / 255
        torch.testing.assert_close(features[number], measuring.chooser.see(seen))


def test_what_was_drawn_is_kept_and_not_drawn_again(world):
    line = f"text --dalle_path {world}/model --keep_drawn drawn --data {world}/val"
    first = measured(line)
    kept = {path: path.stat().st_mtime_ns for path in Path("drawn").iterdir()}
    assert kept
    Path("report.json").unlink()
    assert measured(line) == first
    assert {path: path.stat().st_mtime_ns for path in Path("drawn").iterdir()} == kept


def test_a_report_is_continued_with_the_data_sets_it_lacks(world):
    line = f"codec --vae_path {world}/model/codec --data"
    measured(f"{line} {world}/val")
    report = json.loads(Path("report.json").read_text())
    report["splits"]["val"][0]["psnr"] = 12.5
    Path("report.json").write_text(json.dumps(report))
    found = measured(f"{line} {world}/val {world}/held")
    assert (found["val"][0]["psnr"], "held" in found) == (12.5, True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--number 3 --json report.json", "another evaluation (number differ)"),
        ("--number 1", "at least 2"),
        ("--json other.json", "is no report"),
        ("--json other.json/report.json", "was not written"),
        ("--keep_drawn other.json", "was not written"),
    ],
)
def test_what_cannot_be_is_one_line(world, capsys, line, said):
    measured(f"codec --vae_path {world}/model/codec --data {world}/val")
    Path("other.json").write_text("[]")
    capsys.readouterr()
    assert evaluate(f"codec --vae_path {world}/model/codec --data {world}/val {line}") == 2
    found = capsys.readouterr()
    (message,) = found.err.splitlines()
    assert said in message
    assert not found.out


def test_a_list_that_is_none_is_called_by_what_it_should_hold(capsys):
    with pytest.raises(SystemExit):
        evaluate("text --data val --best_of 1,x")
    assert "argument --best_of: invalid list of int value: '1,x'" in capsys.readouterr().err


def test_decoding_flags_without_diffusion_are_refused(world, capsys):
    assert evaluate(f"text --dalle_path {world}/model --steps 3 --data {world}/val") == 2
    assert "--diffusion only" in capsys.readouterr().err


def test_a_data_set_has_the_name_given_or_that_of_its_file():
    found = name_splits(["data/val-{00000..00003}.tar", "x/heldout_style-00000.tar", "mine=a/b.tar", "x/folder"])
    assert list(found) == ["val", "heldout_style", "mine", "folder"]
    assert found["mine"] == "a/b.tar"


def test_a_data_set_of_a_pattern_has_the_name_before_it():
    assert list(name_splits(["data/val-*.tar", "x/train-{0..1}*.tar"])) == ["val", "train"]


def test_two_data_sets_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="both called val"):
        name_splits(["a/val-00000.tar", "b/val-00000.tar"])
