"""What may be in a pickle, and what happens with everything else."""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dalle3.convert.pickles import Inert, list_globals, load_pickle, load_torchscript, module_class, module_state
from dalle3.errors import CheckpointError

GOLDEN = Path(__file__).parent.parent / "golden"
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Evil:
    """Creates a file when it is unpickled the usual way."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def save(value, path: Path, *, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.fixture
def foreign(monkeypatch):
    """A function that makes a class of a package that is not installed."""

    def make(module: str, name: str, **body):
        for part in (module.split(".")[0], module):
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        kind = type(name, (), {"__module__": module, **body})
        setattr(sys.modules[module], name, kind)
        return kind

    return make


@FORMATS
@pytest.mark.parametrize(
    "nest", [lambda e: e, lambda e: {"weights": {"a": [e]}}, lambda e: {"args": argparse.Namespace(x=e)}]
)
def test_a_pickle_that_runs_a_command_is_refused_by_name_and_not_run(tmp_path, zipped, nest):
    path = save(nest(Evil(tmp_path / "trace")), tmp_path / "evil.pt", zipped=zipped)
    with pytest.raises(CheckpointError, match=r"evil\.pt refused: it names (posix|nt)\.system"):
        load_pickle(path)
    assert not (tmp_path / "trace").exists()


def test_a_plain_pickle_that_runs_a_command_is_refused(tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Evil(tmp_path / "trace")))
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        load_pickle(path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "builtins.getattr", "subprocess.Popen", "torch.load", "runpy.run_path"]
)
def test_a_function_that_could_run_code_is_refused(tmp_path, name):
    module, function = name.split(".")
    path = tmp_path / "evil.pkl"
    path.write_bytes(f"\x80\x02c{module}\n{function}\nX\x01\0\0\0x\x85R.".encode("latin1"))
    with pytest.raises(CheckpointError, match=f"it names {name}"):
        load_pickle(path)


def test_the_globals_of_a_pickle_are_listed_without_running_it(tmp_path):
    path = save({"x": Evil(tmp_path / "trace"), "a": torch.ones(2)}, tmp_path / "evil.pt")
    tensors = {"collections.OrderedDict", "torch.FloatStorage", "torch._utils._rebuild_tensor_v2"}
    assert set(list_globals(path)) == {*tensors, f"{os.system.__module__}.system"}
    assert not (tmp_path / "trace").exists()


@FORMATS
def test_objects_of_training_libraries_become_stand_ins_and_tensors_stay(tmp_path, foreign, zipped):
    callback = foreign("pytorch_lightning.callbacks", "ModelCheckpoint")
    weights = {"a": torch.arange(6.0).view(2, 3).half(), "b": torch.tensor(3)}
    value = {
        "state_dict": collections.OrderedDict(weights),
        "callbacks": {callback: {"best": torch.ones(2)}},
        "args": argparse.Namespace(lr=1),
        "loss": np.float64(1.5),
        "array": np.arange(3),
        "by_name": collections.defaultdict(list, {"x": [1]}),
    }
    found = load_pickle(save(value, tmp_path / "last.ckpt", zipped=zipped))
    assert all(torch.equal(found["state_dict"][key], tensor) for key, tensor in weights.items())
    assert [module_class(key()) for key in found["callbacks"]] == ["pytorch_lightning.callbacks.ModelCheckpoint"]
    assert found["args"].lr == 1
    assert found["loss"] == 1.5
    assert isinstance(found["array"], Inert)
    assert found["by_name"] == {"x": [1]}


def test_the_published_layout_of_a_lightning_checkpoint_is_read():
    found = load_pickle(GOLDEN / "d_gumbelvq_f8_lightning_callbacks_classkey.ckpt")
    whole = load_pickle(GOLDEN / "d_gumbelvq_f8_lightning.ckpt")
    assert torch.equal(found["state_dict"]["encoder.conv_in.weight"], whole["state_dict"]["encoder.conv_in.weight"])


@FORMATS
def test_views_of_one_storage_share_it_and_keep_their_strides(tmp_path, foreign, zipped):
    base = torch.arange(12.0).view(3, 4)
    value = {"whole": base, "turned": base.t(), "row": base[1], "x": foreign("omegaconf", "DictConfig")()}
    found = load_pickle(save(value, tmp_path / "views.pt", zipped=zipped))
    for name in ("whole", "turned", "row"):
        assert torch.equal(found[name], value[name])
        assert found[name].stride() == value[name].stride()
    assert found["row"].untyped_storage().data_ptr() == found["whole"].untyped_storage().data_ptr()


def test_a_tensor_that_reaches_beyond_its_storage_is_an_error(tmp_path, foreign):
    value = {"a": torch.ones(4), "x": foreign("omegaconf", "DictConfig")()}
    path = save(value, tmp_path / "a.pt", zipped=False)
    data = path.read_bytes()
    assert data.count(b"K\x04\x85") == 1  # the shape, (4,)
    path.write_bytes(data.replace(b"K\x04\x85", b"K\x63\x85"))
    with pytest.raises(CheckpointError, match="cannot be read to its end"):
        load_pickle(path)


@FORMATS
def test_a_whole_module_gives_its_parameters_and_buffers(tmp_path, zipped):
    module = nn.Sequential(collections.OrderedDict(conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4)))
    found = load_pickle(save(module, tmp_path / "module.pkl", zipped=zipped))
    assert module_class(found) == "torch.nn.modules.container.Sequential"
    state = module_state(found)
    assert state.keys() == module.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in module.state_dict().items())


def test_a_module_that_contains_itself_comes_to_an_end(tmp_path):
    module = nn.Linear(1, 1)
    vars(module)["_modules"]["self"] = module
    assert "self.self.weight" in module_state(load_pickle(save(module, tmp_path / "module.pkl")))


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_the_modules_of_openais_dvae_give_their_weights(half):
    path = GOLDEN / "openai_dvae" / f"{half}.pkl"
    expected = torch.load(GOLDEN / "openai_dvae" / "expected.pt", weights_only=True)[half]
    found = load_pickle(path)
    assert module_class(found) == f"dall_e.{half}.{half.title()}"
    assert found.vocab_size == 16
    assert all(torch.equal(module_state(found)[name], tensor) for name, tensor in expected.items())
    assert f"dall_e.{half}.{half.title()}Block" in list_globals(path)


def test_a_torchscript_archive_gives_its_weights_in_their_own_formats():
    expected = torch.load(GOLDEN / "clip_archive_state.pt", weights_only=True)
    found = load_torchscript(GOLDEN / "clip_archive.pt")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_weights_are_mapped_and_writing_to_them_leaves_the_file_alone(tmp_path, foreign):
    value = {"a": torch.ones(4), "x": foreign("omegaconf", "DictConfig")()}
    path = save(value, tmp_path / "a.pt")
    load_pickle(path)["a"].fill_(7)
    assert torch.equal(load_pickle(path)["a"], torch.ones(4))


@FORMATS
@pytest.mark.parametrize("known", [True, False], ids=["plain", "with_stand_ins"])
def test_a_file_cut_anywhere_is_one_line(tmp_path, foreign, zipped, known):
    value = {"hparams": {"dim": 4}, "weights": {"a": torch.ones(300), "b": torch.zeros(7, dtype=torch.int64)}}
    if not known:
        value["x"] = foreign("omegaconf", "DictConfig")()
    data = save(value, tmp_path / "whole.pt", zipped=zipped).read_bytes()
    path = tmp_path / "cut.pt"
    for length in sorted({*range(0, len(data), 61), 1, 2, 3, len(data) - 1, len(data) - 2}):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError) as caught:
            load_pickle(path)
        assert "cut.pt" in str(caught.value)
        assert "\n" not in str(caught.value)
        list_globals(path)


def test_a_torchscript_archive_cut_anywhere_is_one_line(tmp_path):
    data = (GOLDEN / "clip_archive.pt").read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(0, len(data), 9973):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pt"):
            load_torchscript(path)


@FORMATS
def test_a_damaged_pickle_is_one_line(tmp_path, foreign, zipped):
    value = {"weights": {"a": torch.ones(3)}, "x": foreign("omegaconf", "DictConfig")()}
    data = save(value, tmp_path / "whole.pt", zipped=zipped).read_bytes()
    path, rng = tmp_path / "damaged.pt", np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 600), size=3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):  # anything else would be a traceback
            load_pickle(path)
