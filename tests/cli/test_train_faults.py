"""`dalle3 train` on bad data, bad checkpoints and a full disk: one clear line, and the last checkpoint survives."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dalle3.checkpoint import read_folder, verify
from dalle3.cli import main
from dalle3.train.run import RunFolder, read_position
from tests.train.processes import MODEL, material

LOOP = {"batch_size": 2, "log_every_n_steps": 1, "sample_every_n_steps": 0, "save_every_n_steps": 2, "device": "cpu"}
GIVEN = {**LOOP, **MODEL, "image_grid": 4}
Damage = Callable[[Path, Path], object]


def train(*switches: str, **given: object) -> int:
    words = [str(part) for name, value in {**GIVEN, **given}.items() for part in (f"--{name}", value)]
    return main(["train", "dalle", *words, *(f"--{name}" for name in switches)])


def refused(capfd: pytest.CaptureFixture, *switches: str, **given: object) -> str:
    """The one line that a command ends with, which fails."""
    capfd.readouterr()
    assert train(*switches, **given) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("dalle3 train: ")]
    return line


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> dict[str, Path]:
    return material(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def begun(flags, tmp_path_factory) -> Path:
    """A run of two steps."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(**flags, out=out, steps=2) == 0
    return out


@pytest.fixture(scope="module")
def other(flags, tmp_path_factory) -> Path:
    """A checkpoint of a model twice as wide."""
    out = tmp_path_factory.mktemp("runs") / "other"
    assert train(**{**flags, "dim": 32}, out=out, steps=2) == 0
    return out / "step-00000002"


@pytest.fixture
def run(begun, tmp_path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


@contextlib.contextmanager
def room_for_files_of(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond `size` bytes, as on a disk that is full; root is not spared."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "train/optimizer.pt"])
def test_a_full_disk_ends_the_run_and_the_last_checkpoint_survives(name, flags, run, capfd):
    first = run / "step-00000002"
    with room_for_files_of((first / name).stat().st_size - 100):
        assert "was not written: " in refused(capfd, **flags, out=run, steps=4, resume="auto")
    assert RunFolder(run).checkpoints() == [first]
    assert not list(run.glob("*.partial"))
    verify(read_folder(first))
    assert train(**flags, out=run, steps=4, resume="auto") == 0


def test_a_full_disk_between_checkpoints_is_one_line_too(flags, run, capfd):
    given = {**flags, "out": run, "resume": "auto", "save_every_n_steps": 100}
    with room_for_files_of(2500):
        said = refused(capfd, **given, steps=100)
    assert "metrics.jsonl was not written: File too large" in said
    assert train(**given, steps=4) == 0
    assert [json.loads(row)["step"] for row in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def cut(name: str) -> Damage:
    return lambda folder, _: (folder / name).write_bytes((folder / name).read_bytes()[:20])


def exchange(name: str) -> Damage:
    return lambda folder, other: shutil.copy(other / name, folder / name)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (exchange("model.safetensors"), "size mismatch for text_emb.weight"),
        (exchange("train/optimizer.pt"), "where the model has (148, 16); it is of another model"),
        (cut("model.safetensors"), "model.safetensors cannot be read as safetensors"),
        (cut("train/optimizer.pt"), "it is damaged, or parts of it are of another model: pass an earlier checkpoint"),
        (cut("train/position.json"), "it is damaged, or parts of it are of another model: pass an earlier checkpoint"),
    ],
)
def test_a_checkpoint_of_another_shape_or_cut_short_is_one_line(damage, said, flags, run, other, capfd):
    damage(run / "step-00000002", other)
    assert said in refused(capfd, **flags, out=run, steps=4, resume="auto")


def test_a_caption_longer_than_the_model_is_one_line_or_is_cut(flags, tmp_path, capfd):
    short = {**flags, "text_seq_len": 4, "steps": 1}
    said = refused(capfd, **short, out=tmp_path / "a")
    assert "tokens long and the model reads 4; pass --truncate_captions, or a larger --text_seq_len" in said
    assert train("truncate_captions", **short, out=tmp_path / "b") == 0


def test_pictures_without_captions_are_one_line(flags, tmp_path, capfd):
    (tmp_path / "pictures").mkdir()
    shutil.copy(flags["image_text_folder"] / "0.png", tmp_path / "pictures")
    said = refused(capfd, **{**flags, "image_text_folder": tmp_path / "pictures"}, out=tmp_path / "a")
    assert "holds 1 pictures and none has a caption; put the caption of a.png in a.txt beside it" in said


def tar_of(folder: Path, numbers: range, path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in (f"{number}.{suffix}" for number in numbers for suffix in ("png", "txt")):
            tar.add(folder / name, name)
    return path


def test_tars_cut_and_spoilt_in_the_middle_are_trained_on_and_what_is_lost_is_named(flags, tmp_path, capfd):
    tars = [tar_of(flags["image_text_folder"], range(6 * i, 6 * i + 6), tmp_path / f"{i}.tar") for i in range(2)]
    tars[0].write_bytes(tars[0].read_bytes()[:9000])
    with tarfile.open(tars[1]) as tar:
        spoilt = tar.getmember("7.png").offset_data
    content = bytearray(tars[1].read_bytes())
    content[spoilt : spoilt + 8] = b"not one!"
    tars[1].write_bytes(content)
    given = {**flags, "image_text_folder": tmp_path / "{0..1}.tar", "wds": "png,txt", "epochs": 2}
    assert train(**given, out=tmp_path / "run") == 0
    said = capfd.readouterr().err
    assert f"left out, first: {tars[0]}: the file ends" in said
    assert f"skipped {tars[1]}:7: not a readable picture" in said
    assert read_position(RunFolder(tmp_path / "run").checkpoints()[-1]).skipped == said.count("warning: skipped ") == 2
