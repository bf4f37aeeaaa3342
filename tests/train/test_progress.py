"""What is seen of a run: a bar on a terminal, lines elsewhere, and figures that mean what they say."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from torch import nn

from dalle3.data.loader import Stream
from dalle3.data.transforms import Crop, CropConfig
from dalle3.log import note
from dalle3.train.progress import progress
from dalle3.train.run import Position
from dalle3.train.throughput import Clock, Work, count, peak
from tests.train.conftest import TASKS, Squares, dalle_task

ROW = {"step": 3, "loss": 1.5, "learning_rate": 0.1, "samples_per_second": 20.0, "minutes_left": 2.0}


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_goes_on_from_where_the_run_stands():
    with contextlib.redirect_stderr(Terminal()) as terminal, progress(10, done=2) as shown:
        shown.advance()
        shown.show(ROW)
    last = terminal.getvalue().rstrip().split("\r")[-1]
    assert last.startswith("3/10 ")
    assert " left, " in last
    assert last.endswith("loss 1.5  samples_per_second 20")


def test_messages_stand_above_the_bar_and_stay():
    with contextlib.redirect_stderr(Terminal()) as terminal, progress(10, done=2) as shown:
        note("warning: skipped square 2")
        shown.keep({"step": 2, "psnr": 20.0})
    written = terminal.getvalue()
    assert "warning: skipped square 2\n" in written
    assert "step 2/10  psnr 20\n" in written


@pytest.mark.parametrize("speaks", [True, False])
def test_elsewhere_metrics_are_lines(speaks, capsys):
    with progress(10, done=2, speaks=speaks) as shown:
        shown.advance()
        shown.show(ROW)
    assert capsys.readouterr().err == "step 3/10  loss 1.5  samples_per_second 20  minutes_left 2\n"


def squares() -> Stream:
    return Stream(Squares(), Crop(8, CropConfig()), seed=0)


def test_operations_are_those_of_the_matrix_products_forward_and_backward():
    task = dalle_task()
    config, layers = task.dalle.config, task.dalle.transformer.modules()
    positions = config.text_len + config.image_seq_len - 1
    products = 3 * 2 * positions * sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))
    logits = config.text_seq_len * config.num_text_ids + config.image_seq_len * config.num_image_tokens
    head = 3 * 2 * config.dim * logits
    scores = 2 * config.heads * positions**2 * config.dim_head
    found = count(task, squares(), seed=0, step=0)
    assert products + head + 6 * scores <= found <= products + head + 7 * scores  # or found anew


@pytest.mark.parametrize("kind", TASKS)
def test_counting_leaves_no_trace(kind):
    task, drawn = TASKS[kind](), torch.random.get_rng_state()
    before = {name: tensor.clone() for name, tensor in task.objective.state_dict().items()}
    assert count(task, squares(), seed=0, step=5) > 0
    assert all(parameter.grad is None for parameter in task.objective.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.objective.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_a_clock_tells_samples_tokens_and_the_part_of_the_peak(monkeypatch):
    now = iter([0.0, 10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = Clock(Work(tokens=5, operations=1000, peak=50_000))
    assert clock.read(Position(step=1, consumed=8), 11) == {}  # what a run begins with is slow
    assert clock.read(Position(step=6, consumed=48), 11) == {
        "samples_per_second": 20,
        "tokens_per_second": 100,
        "model_flops_utilisation": 0.4,
        "minutes_left": pytest.approx(2 / 60),
    }


def test_the_peak_of_a_processor_is_measured():
    measured, how = peak(torch.device("cpu"), torch.float32)
    assert measured > 1e8
    assert how == "measured"


@pytest.mark.parametrize(
    ("name", "operations"),
    [("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12)],
)
def test_the_peak_of_a_known_gpu_is_listed(name, operations, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak(torch.device("cuda", 0), torch.bfloat16) == (operations, f"the data sheet of {name}")
