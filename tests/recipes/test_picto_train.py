"""The training of the picto models: its plan, its flags, and runs that share a budget of time."""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import threading
import time
from pathlib import Path

import pytest

from dalle3.cli import train as train_command
from dalle3.errors import ConfigError, DataError, TrainingError
from recipes.picto import schedule
from recipes.picto.schedule import Run, call_all, train
from recipes.picto.train import SIZES, STAGES, Plan, as_flags, captions, grouped, main, pattern, read_size

# A stand-in for `dalle3 train`: its argument says how it behaves.
WORKER = """
import signal, sys, pathlib, time
folder, how = pathlib.Path(sys.argv[1]), sys.argv[2]
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
(folder / "step-00000001").mkdir(exist_ok=True)
(folder / "step-00000001" / "config.json").write_text("{}")
if how == "fail":
    sys.exit("it broke")
while how == "endless" and not stop:
    time.sleep(0.01)
print("stopped early" if stop else "done", flush=True)
"""


@pytest.fixture(autouse=True)
def _worker(monkeypatch):
    monkeypatch.setattr(schedule, "DALLE3", (schedule.sys.executable, "-c", WORKER))
    monkeypatch.setattr(schedule, "TICK", 0.02)


@pytest.fixture
def data(tmp_path) -> Path:
    """Tars with captions."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train-00000", "train-00001", "val-00000"):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for text in ("a red fox\na fox", "two cats"):
                entry = tarfile.TarInfo(f"{text[:3]}.txt")
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text.encode()))
    return folder


def plan(data: Path, size: str = "small", minutes: float = 10) -> Plan:
    return Plan(data=data, out=data.parent / "runs", size=read_size(size), minutes=minutes, shared=())


def run(folder: Path, how: str, *, seconds: float = 60) -> Run:
    return Run(name=folder.name, arguments=(str(folder), how), folder=folder, seconds=seconds)


def forever() -> float:
    return time.monotonic() + 60


@pytest.mark.parametrize("size", sorted(path.stem for path in SIZES.glob("*.json")))
def test_every_flag_of_a_size_is_one_of_dalle3_train(size, data):
    parser = argparse.ArgumentParser(exit_on_error=False)
    train_command.add_arguments(parser)
    for stage in STAGES:
        for name in stage:
            parser.parse_args(plan(data, size).run(name).arguments[1:])


@pytest.mark.parametrize("size", sorted(path.stem for path in SIZES.glob("*.json")))
def test_the_shares_of_a_size_are_the_whole_time(size):
    assert sum(part["share"] for part in read_size(size)["parts"].values()) == pytest.approx(1)


def test_one_after_another_each_has_its_share_and_together_each_has_that_of_all(data):
    apart = [run for (run,) in grouped(plan(data), STAGES[0], together=False)]
    (beside,) = grouped(plan(data), STAGES[0], together=True)
    whole = sum(run.seconds for run in apart)
    assert [run.seconds for run in beside] == pytest.approx([whole, whole])


def test_an_image_tokenizer_whose_codes_are_made_is_not_trained_on(data):
    made = plan(data)
    made.codec.mkdir(parents=True)
    assert [run.name for (run,) in grouped(made, STAGES[0], together=False)] == ["clip"]


def test_a_run_is_stopped_when_its_time_is_used_up_and_is_finished_then(tmp_path):
    endless = run(tmp_path / "a", "endless", seconds=0.3)
    assert train([endless], until=forever(), stop=threading.Event())
    assert endless.finished
    assert endless.spent >= 0.3


def test_a_call_that_ends_earlier_leaves_the_run_for_the_next(tmp_path):
    endless = run(tmp_path / "a", "endless")
    assert not train([endless], until=time.monotonic() + 0.3, stop=threading.Event())
    before = endless.spent
    assert not train([endless], until=time.monotonic() + 0.3, stop=threading.Event())
    assert endless.spent > before > 0


def test_a_signal_ends_all_runs(tmp_path):
    stop = threading.Event()
    stop.set()
    assert not train([run(tmp_path / name, "endless") for name in "ab"], until=forever(), stop=stop)


def test_a_run_that_made_all_its_steps_is_finished_before_its_time(tmp_path):
    short = run(tmp_path / "a", "short")
    assert train([short], until=forever(), stop=threading.Event())
    assert short.checkpoint.name == "step-00000001"


def test_a_run_that_fails_is_named_with_its_last_line_and_the_others_end(tmp_path):
    with pytest.raises(TrainingError, match=r"b ended with code 1: it broke .*b\.log"):
        train([run(tmp_path / "a", "endless"), run(tmp_path / "b", "fail")], until=forever(), stop=threading.Event())


def test_a_command_that_fails_in_one_of_its_processes_fails(tmp_path):
    call_all([str(tmp_path), "short"], processes=2)
    with pytest.raises(TrainingError, match="code 1"):
        call_all([str(tmp_path), "fail"], processes=2)


def test_tars_are_named_by_their_first_and_last(data):
    assert pattern(data, "train-*.tar") == f"{data}/train-{{00000..00001}}.tar"
    assert pattern(data, "val-*.tar") == f"{data}/val-00000.tar"


def test_words_are_learnt_from_every_caption_of_training(data):
    assert list(captions(data)) == 2 * ["a red fox", "a fox", "two cats"]


def test_switches_and_values_become_flags():
    assert as_flags({"low_res": True, "learn_sigma": False, "dim": 8}) == [
        "--low_res",
        "--no-learn_sigma",
        "--dim",
        "8",
    ]


def test_data_and_sizes_that_are_not_there_are_one_line(tmp_path, capsys):
    with pytest.raises(DataError, match="build the data first"):
        pattern(tmp_path, "train-*.tar")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        read_size("huge")
    assert main(["--data", str(tmp_path), "--minutes", "1", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_size_of_ones_own_is_a_file(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"parts": {}}))
    assert read_size(str(tmp_path / "mine.json")) == {"parts": {}}
