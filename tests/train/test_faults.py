"""Nothing is lost, for real: processes are killed while they save and while they train, and runs go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dalle3.checkpoint import read_folder, verify
from dalle3.train.run import RunFolder, read_position
from tests.train.processes import command, finish, losses, material, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> dict[str, Path]:
    return material(tmp_path_factory.mktemp("data"))


def wait_for(condition, process: subprocess.Popen) -> None:
    """Looks until `condition()` holds; the process must go on meanwhile."""
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1][-6000:]
        assert time.monotonic() < end
        time.sleep(0.001)


def checkpoints(run: Path) -> list[Path]:
    return RunFolder(run).checkpoints()


def killed_in_a_save(line: list[str], run: Path) -> None:
    """Runs until a save that is under way after the first checkpoint, and kills the process there."""
    process = start(line)
    while True:
        wait_for(lambda: checkpoints(run) and list(run.glob("*.partial")), process)
        process.send_signal(signal.SIGSTOP)
        if list(run.glob("*.partial")):  # still not whole: it was stopped in time
            process.kill()
            process.communicate()
            return
        process.send_signal(signal.SIGCONT)


def test_a_kill_during_a_save_leaves_the_checkpoint_before(flags, tmp_path):
    run, steps = tmp_path / "run", {"batch_size": 2, "save_every_n_steps": 1, "keep_n_checkpoints": 2}
    given = {**flags, **steps, "dalle_output_file_name": run}
    killed_in_a_save(command(1, **given, steps=100_000), run)
    kept = checkpoints(run)[-1]
    verify(read_folder(kept))
    at = read_position(kept).step
    said = finish(start(command(1, **given, steps=at + 2, resume="auto")))
    assert f"continuing from {kept}" in said
    assert [row["step"] for row in losses(run)] == list(range(1, at + 3))
    assert not list(run.glob("*.partial"))


def children(process: subprocess.Popen) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return sorted(int(line) for line in found.stdout.split())


@pytest.mark.parametrize("switches", [(), ("deepspeed",)], ids=["ddp", "deepspeed"])
def test_a_killed_process_ends_the_run_and_the_run_goes_on(switches, flags, tmp_path):
    if switches:
        pytest.importorskip("deepspeed")
    run = tmp_path / "run"
    given = {**flags, "batch_size": 2, "save_every_n_steps": 5, "keep_n_checkpoints": 2, "dalle_output_file_name": run}
    process = start(command(2, *switches, **given, steps=100_000))
    wait_for(lambda: checkpoints(run), process)
    os.kill(children(process)[1], signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "another process ended; the last checkpoint is" in said
    at = read_position(checkpoints(run)[-1]).step
    finish(start(command(2, *switches, **given, steps=at + 2, resume="auto")))
    assert [row["step"] for row in losses(run)] == list(range(1, at + 3))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "ctrl-c"])
def test_a_signal_saves_and_ends_well(number, flags, tmp_path):
    run = tmp_path / "run"
    process = start(command(1, **flags, batch_size=2, steps=100_000, dalle_output_file_name=run))
    wait_for(lambda: (run / "metrics.jsonl").is_file(), process)
    process.send_signal(number)
    said = finish(process)
    (kept,) = checkpoints(run)
    assert f"stopped early; --resume auto continues: {kept}" in said
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == read_position(kept).step


def test_sigterm_at_one_of_two_processes_saves_and_ends_both_well(flags, tmp_path):
    run = tmp_path / "run"
    process = start(command(2, **flags, batch_size=2, steps=100_000, dalle_output_file_name=run))
    wait_for(lambda: (run / "metrics.jsonl").is_file(), process)
    os.kill(children(process)[1], signal.SIGTERM)
    finish(process)
    assert len(checkpoints(run)) == 1
