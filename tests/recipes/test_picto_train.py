"""The training of the picto models: its plan, its flags, and runs that share a budget of time."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dalle3.cli import pack as pack_command
from dalle3.cli import train as train_command
from dalle3.errors import ConfigError, DataError, TrainingError
from recipes.picto import schedule
from recipes.picto.schedule import Phase, Run, call_all, train
from recipes.picto.train import (
    SIZES,
    STAGES,
    Plan,
    as_flags,
    captions,
    freeze_codec,
    grouped,
    main,
    pack,
    pattern,
    read_size,
)

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
while how not in ("short", "stops") and not stop:
    time.sleep(0.01)
if how == "stops":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
if how == "unsaved":
    os.write(2, b"dalle3 train: no space left\\n")  # at once, as another process says it too
    sys.exit(1)
print("stopped early" if stop else "done", "holds the model after 1 steps", flush=True)
"""

# One for `dalle3 pack`: writes down its arguments.
PACKER = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[2])
folder.mkdir()
(folder / "packed").write_text(json.dumps(sys.argv[2:]))
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
    phases = (Phase(arguments=(str(folder), how)),)
    return Run(name=folder.name, phases=phases, folder=folder, seconds=seconds, processes=processes)


def phased(folder: Path, *hows: str, spent: float) -> Run:
    """A run of a minute in phases of equal length, called 1, 2, ..., which took `spent` seconds until now."""
    phases = (
        Phase(arguments=(str(folder), how, str(number)), share=1 / len(hows)) for number, how in enumerate(hows, 1)
    )
    made = Run(name=folder.name, phases=tuple(phases), folder=folder, seconds=60)
    folder.mkdir()
    made.note(spent, done=False)
    return made


def begun_phases(printed: str) -> list[str]:
    """The phases that calls say they begin."""
    return [line.split()[-1] for line in printed.splitlines() if line.startswith("dalle3 ")]


def flag(arguments: tuple[str, ...], name: str) -> str:
    """The value of a flag; of two the last counts."""
    return dict(itertools.pairwise(arguments))[name]


def batch_sizes(run: Run) -> list[int]:
    return [int(flag(phase.arguments, "--batch_size")) for phase in run.phases]


def dalle(data: Path, *phases: dict[str, Any], **parts: Any) -> Plan:
    """A plan of which the DALLE has these phases."""
    size = read_size("small")
    size["parts"]["dalle"]["phases"] = list(phases)
    return trained(Plan(data=data, out=data.parent / "runs", size=size, minutes=10, shared=(), **parts), "clip")


def trained(made: Plan, *names: str) -> Plan:
    """A plan of which the parts that are named have a checkpoint each; all that are packed, where none is."""
    for name in names or ("dalle", "clip", "decoder"):
        (made.out / name / "step-00000001").mkdir(parents=True, exist_ok=True)
        (made.out / name / "step-00000001" / "config.json").write_text(name)
    return made


def forever() -> float:
    return time.monotonic() + 60


@pytest.mark.parametrize("size", sorted(path.stem for path in SIZES.glob("*.json")))
def test_every_flag_of_a_size_is_one_of_dalle3_train(size, data):
    parser = argparse.ArgumentParser(exit_on_error=False)
    train_command.add_arguments(parser)
    made = trained(plan(data, size), "codec", "clip", "decoder")
    for name in made.size["parts"]:
        for phase in made.run(name).phases:
            parser.parse_args(phase.arguments[1:])


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
    assert not list(grouped(made, STAGES[1], together=False))


def test_an_image_tokenizer_that_is_finished_begins_with_the_one_before_and_takes_its_place(data):
    made = trained(plan(data), "codec")
    ((finish,),) = grouped(made, STAGES[1], together=False)
    assert flag(finish.phases[0].arguments, "--init_from") == str(made.out / "codec" / "step-00000001")
    freeze_codec(trained(made, "codec_finish"))
    assert (made.codec / "config.json").read_text() == "codec_finish"


def test_a_decoder_that_is_finished_begins_with_the_one_before_and_is_packed(data):
    made = trained(plan(data), "decoder")
    assert made.last("decoder").parent.name == "decoder"
    ((finish,),) = grouped(made, STAGES[3], together=False)
    assert flag(finish.phases[0].arguments, "--init_from") == str(made.out / "decoder" / "step-00000001")
    assert flag(finish.phases[0].arguments, "--vae_path") == str(made.codec)
    assert trained(made, "decoder_finish").last("decoder").parent.name == "decoder_finish"


def test_a_size_may_do_without_finishing_its_image_tokenizer(data):
    made = trained(plan(data, "full"), "codec")
    assert not list(grouped(made, STAGES[1], together=False))
    freeze_codec(made)
    assert (made.codec / "config.json").read_text() == "codec"


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
    alone, shared = trained(plan(data), "codec", "clip", "decoder"), plan(data, processes=2)
    for name in alone.size["parts"]:
        assert [2 * size for size in batch_sizes(shared.run(name))] == batch_sizes(alone.run(name))


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


@pytest.mark.parametrize(("spent", "place", "left"), [(0, 0, 20), (19, 0, 1), (20, 1, 20), (59, 2, 1)])
def test_a_run_is_in_the_phase_that_its_time_says(tmp_path, spent, place, left):
    three = phased(tmp_path / "a", "endless", "endless", "endless", spent=spent)
    phase, seconds = three.now()
    assert phase == three.phases[place]
    assert seconds == pytest.approx(left)


def test_a_phase_whose_time_is_used_up_is_followed_by_the_next(tmp_path, capsys):
    two = phased(tmp_path / "a", "endless", "short", spent=29.9)
    assert train([two], until=forever(), stop=threading.Event())
    assert begun_phases(capsys.readouterr().err) == ["1", "2"]
    assert 30 <= two.spent < 60


def test_a_phase_that_was_stopped_is_gone_on_with(tmp_path, capsys):
    two = phased(tmp_path / "a", "endless", "endless", spent=30)
    for _ in range(2):
        assert not train([two], until=time.monotonic() + 0.1, stop=threading.Event())
    assert begun_phases(capsys.readouterr().err) == ["2", "2"]


def test_a_phase_that_fails_ends_the_run_beside_it_whose_time_counts(tmp_path):
    breaks, beside = phased(tmp_path / "a", "endless", "fail", spent=29.9), run(tmp_path / "b", "endless")
    with pytest.raises(TrainingError, match=r"a ended with code 1: it broke"):
        train([breaks, beside], until=forever(), stop=threading.Event())
    assert 30 <= breaks.spent < 60
    assert beside.spent > 0


def test_a_run_that_made_all_its_steps_has_no_further_phase(tmp_path, capsys):
    short = phased(tmp_path / "a", "short", "endless", spent=0)
    assert train([short], until=forever(), stop=threading.Event())
    assert begun_phases(capsys.readouterr().err) == ["1"]


def test_a_run_that_someone_else_stops_is_left_to_the_next_call(tmp_path, capsys):
    itself = phased(tmp_path / "a", "stops", "stops", spent=0)
    assert not train([itself], until=forever(), stop=threading.Event())
    assert begun_phases(capsys.readouterr().err) == ["1"]


def test_the_small_dalle_learns_things_alone_first_and_ends_with_a_smaller_rate(data):
    phases = [phase.arguments for phase in trained(plan(data), "clip").run("dalle").phases]
    sources = [Path(flag(arguments, "--image_text_folder")).name for arguments in phases]
    assert sources == ["codes-first", "codes", "codes-things", "codes-evenly", "codes-evenly"]
    rates = [float(flag(arguments, "--learning_rate")) for arguments in phases]
    assert rates[0] == rates[1] > rates[2] == rates[3] > rates[4]


def test_a_dalle_whose_maps_read_captions_is_told_by_which_clip(data):
    made = trained(plan(data), "clip")
    (arguments, *_) = [phase.arguments for phase in made.run("dalle").phases]
    assert flag(arguments, "--clip") == str(made.out / "clip" / "step-00000001")
    del made.size["parts"]["dalle"]["flags"]["clip_maps"]
    assert "--clip" not in made.run("dalle").phases[0].arguments


def test_a_dalle_may_learn_from_the_pictures_themselves(data):
    crops = {"share": 1, "source": "pictures", "flags": {"random_resize_crop_lower_ratio": 0.8}}
    (phase,) = dalle(data, crops).run("dalle").phases
    assert flag(phase.arguments, "--image_text_folder") == str(data / "train-{00000..00001}.tar")
    assert flag(phase.arguments, "--random_resize_crop_lower_ratio") == "0.8"


def test_processes_share_the_batches_of_a_phase_too(data):
    phases = [{"share": 0.5, "flags": {"batch_size": size}} for size in (32, 8)]
    assert batch_sizes(dalle(data, *phases, processes=4).run("dalle")) == [8, 2]
    with pytest.raises(ConfigError, match="dalle has batches of 8, which --processes 16"):
        dalle(data, *phases, processes=16)


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([], r"shares \[\] of its time"),
        ([{"share": 0.5}, {"share": 0.4}], r"shares \[0.5, 0.4\] of its time"),
        ([{"share": 1.5}, {"share": -0.5}], "above 0"),
        ([{"share": 1, "flag": {}}], "have flag; a phase has share, source and flags"),
        (
            [{"share": 1, "source": "codes-last"}],
            "source codes-last; only dalle has one of codes, codes-first, codes-things, codes-evenly, pictures",
        ),
        ([{"share": 1, "flags": {"steps": 9}}], "they go into the part's flags"),
    ],
)
def test_phases_that_cannot_be_are_one_line(data, phases, said):
    with pytest.raises(ConfigError, match=said):
        dalle(data, *phases)


@pytest.mark.parametrize("size", sorted(path.stem for path in SIZES.glob("*.json")))
def test_what_a_size_recommends_is_packed_by_flags_of_dalle3_pack(size, data, monkeypatch):
    monkeypatch.setattr(schedule, "DALLE3", (schedule.sys.executable, "-c", PACKER))
    made = trained(plan(data, size))
    pack(made)
    parser = argparse.ArgumentParser(exit_on_error=False)
    pack_command.add_arguments(parser)
    args = vars(parser.parse_args(json.loads((made.out / "model" / "packed").read_text())))
    wanted = read_size(size)["recommended"]
    assert {name: args[name] for name in wanted} == wanted


def test_a_pack_that_fails_leaves_the_model_there_was(data):
    made = trained(plan(data))
    (made.out / "model").mkdir()
    (made.out / "model" / "packed").touch()
    with pytest.raises(TrainingError):
        pack(made)
    assert (made.out / "model" / "packed").exists()


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
    mine = read_size("small") | {"words": 512}
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    assert read_size(str(tmp_path / "mine.json")) == mine


@pytest.mark.parametrize("content", [{"parts": {}}, {"words": 1, "parts": {"codec": {}}}, [], {"words": 1, "parts": 3}])
def test_a_size_without_a_part_is_one_line(content, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="needs words, and parts for codec, clip, dalle, decoder with flags, share"):
        read_size(str(tmp_path / "mine.json"))


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_a_training_without_time_is_one_line(minutes, data):
    with pytest.raises(ConfigError, match="--minutes is"):
        plan(data, minutes=minutes)
