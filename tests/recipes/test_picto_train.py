"""The training of the picto models: its plan, its flags, and runs that share a budget of time."""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dalle3.cli import train as train_command
from dalle3.errors import ConfigError, DataError, TrainingError
from recipes.picto import schedule
from recipes.picto.schedule import Run, call_all, train
from recipes.picto.train import SIZES, STAGES, Plan, as_flags, captions, grouped, main, pattern, read_size

# A stand-in for `dalle3 train`: its argument says how it behaves. It says what dalle3 says.
WORKER = """
import os, signal, sys, pathlib, time
folder, how = pathlib.Path(sys.argv[1]), sys.argv[2]
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(print("stopping after this step", flush=True)))
if os.environ.get("RANK", "0") == "0":
    (folder / "step-00000001").mkdir(exist_ok=True)
    (folder / "step-00000001" / "config.json").write_text(os.environ.get("OMP_NUM_THREADS", ""))
if how == "fail":
    sys.exit("it broke")
while how != "short" and not stop:
    time.sleep(0.01)
if how == "unsaved":
    sys.exit("dalle3 train: no space left")
print("stopped early" if stop else "done", "holds the model after 1 steps", flush=True)
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


def plan(data: Path, size: str = "small", minutes: float = 10, processes: int = 1) -> Plan:
    out = data.parent / "runs"
    return Plan(data=data, out=out, size=read_size(size), minutes=minutes, shared=(), processes=processes)


def run(folder: Path, how: str, *, seconds: float = 60, processes: int = 1) -> Run:
    arguments = (str(folder), how)
    return Run(name=folder.name, arguments=arguments, folder=folder, seconds=seconds, processes=processes)


def batch_size(run: Run) -> int:
    return int(run.arguments[run.arguments.index("--batch_size") + 1])


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


@pytest.fixture
def begun(tmp_path) -> Iterator[threading.Event]:
    """Is set when runs `a` and `b` have written their checkpoints."""
    event, over = threading.Event(), threading.Event()
    wanted = [tmp_path / name / "step-00000001" / "config.json" for name in "ab"]

    def watch() -> None:
        while not (over.wait(0.05) or all(path.exists() for path in wanted)):
            pass
        event.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield event
    over.set()
    watcher.join()


def test_runs_of_several_processes_are_stopped_and_saved_or_said_not_to_be(tmp_path, begun):
    saved, lost = (run(tmp_path / name, how, processes=2) for name, how in (("a", "endless"), ("b", "unsaved")))
    with pytest.raises(TrainingError, match=r"b ended with code 1: dalle3 train: no space left .*b\.log"):
        train([saved, lost], until=forever(), stop=begun)
    assert "stopped early" in saved.log.read_text()
    assert saved.spent > 0
    assert not saved.finished
    threads = (saved.checkpoint / "config.json").read_text()
    assert threads == str(max(1, (os.cpu_count() or 1) // 2))


def test_several_processes_share_the_batches_of_a_size(data):
    alone, shared = plan(data), plan(data, processes=2)
    for stage in STAGES:
        for name in stage:
            assert batch_size(shared.run(name)) * 2 == batch_size(alone.run(name))


def test_processes_that_cannot_share_a_batch_are_one_line(tmp_path, capsys):
    line = ["--data", str(tmp_path), "--minutes", "1", "--out", str(tmp_path / "out"), "--processes"]
    assert main([*line, "3"]) == 2
    assert main([*line, "0"]) == 2
    three, none = capsys.readouterr().err.splitlines()
    assert "codec has batches of 16, which --processes 3 cannot share" in three
    assert "--processes is 0" in none


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
