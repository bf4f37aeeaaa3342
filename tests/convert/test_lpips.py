"""Reading LPIPS from flax's pickle; the real file has 59 MB, so a small one stands for it."""

from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch

from dalle3.convert.lpips import read_lpips
from dalle3.convert.pickles import ForbiddenGlobalError, load_arrays
from dalle3.errors import CheckpointError
from dalle3.models.lpips import STAGES


def flax_parameters() -> dict:
    widths = [3, *(width for stage in STAGES for width in stage)]
    trunk = {
        f"Conv_{index}": {
            "kernel": np.zeros((3, 3, a, b), np.float32),
            "bias": np.full(b, index, np.float32),
        }
        for index, (a, b) in enumerate(pairwise(widths))
    }
    trunk["Conv_0"]["kernel"][0, 2, 1, 5] = 7
    heads = {
        f"NetLinLayer_{index}": {"Conv_0": {"kernel": np.full((1, 1, stage[-1], 1), index, np.float32)}}
        for index, stage in enumerate(STAGES)
    }
    return {"VGG16_0": trunk, **heads}


def write(path, value):
    path.write_bytes(pickle.dumps(value, protocol=3))
    return path


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<i8"])
def test_arrays_are_read_whatever_their_order(tmp_path, order, kind):
    array = np.arange(6).reshape(2, 3).astype(kind, order=order)
    found = load_arrays(write(tmp_path / "arrays.pkl", {"a": {"b": array}}))
    assert list(found) == ["a.b"]
    assert torch.equal(found["a.b"].double(), torch.arange(6.0).double().reshape(2, 3))


def test_kernels_are_turned_to_torchs_layout(tmp_path):
    network = read_lpips(write(tmp_path / "vgg16.ckpt", flax_parameters()))
    assert network.convolutions[0].weight[5, 1, 0, 2] == 7
    assert (network.convolutions[12].bias == 12).all()
    assert (network.heads[4] == 4).all()


def test_another_network_is_refused(tmp_path):
    alexnet = {"AlexNet_0": {"Conv_0": {"kernel": np.zeros((11, 11, 3, 64), np.float32)}}}
    with pytest.raises(CheckpointError, match=r"holds no VGG16_0.Conv_0.kernel; expected LPIPS with VGG16"):
        read_lpips(write(tmp_path / "alexnet.ckpt", alexnet))
    wrong = flax_parameters()
    wrong["VGG16_0"]["Conv_3"]["bias"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match=r"convolutions.3.bias is \(3,\), not \(128,\)"):
        read_lpips(write(tmp_path / "wrong.ckpt", wrong))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    with pytest.raises(ForbiddenGlobalError, match="which could run code"):
        load_arrays(write(tmp_path / "evil.pkl", {"a": print}))
