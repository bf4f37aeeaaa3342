"""Number formats: which are fast on this machine, and what is said of one that is not."""

from __future__ import annotations

import pytest
import torch

from dalle3 import runtime
from dalle3.runtime import fast_bfloat16, pick_dtype, time_of_bfloat16

CPU = torch.device("cpu")


def test_the_time_of_bfloat16_is_measured_once():
    assert 0 < time_of_bfloat16() == time_of_bfloat16()


@pytest.mark.parametrize(("times", "fast"), [(0.25, True), (85.7, False)])
def test_a_slow_bfloat16_is_named_and_taken_all_the_same(times, fast, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "time_of_bfloat16", lambda: times)
    assert fast_bfloat16(CPU) == fast
    assert fast_bfloat16(torch.device("cuda"))
    assert pick_dtype("bfloat16", CPU) == torch.bfloat16
    said = "warning: --dtype bfloat16 takes 86 times as long as float32 on this CPU; float32 is better\n"
    assert capsys.readouterr().err == ("" if fast else said)


def test_float32_is_not_compared_with_anything(monkeypatch, capsys):
    monkeypatch.setattr(runtime, "time_of_bfloat16", lambda: pytest.fail("tried"))
    assert pick_dtype("float32", CPU) == torch.float32
    assert not capsys.readouterr().err
