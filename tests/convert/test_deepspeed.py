"""DeepSpeed's folders: whole weights are read, split ones refused with the way to join them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dalle3.convert import read
from dalle3.errors import CheckpointError
from tests.golden import FOLDER

AUXILIARY = ("hparams", "vae_params", "epoch")


@pytest.fixture
def raw() -> dict:
    return torch.load(FOLDER / "ckpt_fork_dalle.pt", weights_only=True)


def auxiliary(raw: dict) -> dict:
    return {**{key: raw[key] for key in AUXILIARY}, "weights": "To get a working standard checkpoint, look into"}


@pytest.fixture
def folder(tmp_path, raw) -> Path:
    """What DALLE-pytorch leaves under stages 0 to 2: two steps, of which `latest` names the second."""
    top = tmp_path / "dalle-ds-cp"
    for step, scale in ((9, 0.0), (10, 1.0)):
        (top / f"global_step{step}").mkdir(parents=True)
        module = {name: (tensor * scale).half() for name, tensor in raw["weights"].items()}
        states = {"module": module, "optimizer": None, "ds_version": "0.19.8", "global_steps": step}
        torch.save(states, top / f"global_step{step}" / "mp_rank_00_model_states.pt")
        (top / f"global_step{step}" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    torch.save(auxiliary(raw), top / "auxiliary.pt")
    (top / "latest").write_text("global_step10")
    return top


def check(found, raw) -> None:
    assert (found.kind, found.config.dim, found.codec_info["kind"]) == ("dalle", 48, "discrete_vae")
    assert torch.equal(
        found.state["norm.weight"], raw["weights"]["to_logits.0.weight"].to(found.state["norm.weight"].dtype)
    )


@pytest.mark.parametrize(
    "inside", ["", "global_step10", "global_step10/mp_rank_00_model_states.pt"], ids=["folder", "step", "file"]
)
def test_the_newest_step_is_read_from_the_folder_the_step_or_the_file(folder, raw, inside):
    found = read(folder / inside)
    check(found, raw)
    assert "ds_version: not a part of this model" in found.dropped


def test_without_latest_the_highest_step_is_the_newest(folder, raw):
    (folder / "latest").unlink()
    check(read(folder), raw)


def test_without_auxiliary_what_the_states_say_themselves_is_enough(folder, raw):
    (folder / "auxiliary.pt").unlink()
    path = folder / "global_step10" / "mp_rank_00_model_states.pt"
    torch.save(torch.load(path, weights_only=True) | {key: raw[key] for key in AUXILIARY}, path)
    check(read(folder), raw)


def test_without_hyper_parameters_the_file_that_has_them_is_named(folder):
    (folder / "auxiliary.pt").unlink()
    with pytest.raises(CheckpointError, match=r"without its hyper-parameters; put the auxiliary\.pt"):
        read(folder)


def test_auxiliary_alone_points_elsewhere(folder):
    with pytest.raises(CheckpointError, match="its weights are not in this file: To get a working"):
        read(folder / "auxiliary.pt")


@pytest.mark.parametrize("named", [True, False], ids=["shards", "empty_tensors"])
def test_weights_split_by_stage_3_name_the_script_that_joins_them(folder, raw, named):
    path = folder / "global_step10" / "mp_rank_00_model_states.pt"
    if named:
        path.rename(path.with_name("zero_pp_rank_0_mp_rank_00_model_states.pt"))
    else:
        torch.save({"module": {name: torch.zeros(0) for name in raw["weights"]}}, path)
    for place in (folder, folder / "global_step10"):
        with pytest.raises(CheckpointError, match=r"stage 3 split the weights .* zero_to_fp32\.py"):
            read(place)


def test_a_model_split_over_devices_is_refused(folder):
    (folder / "global_step10" / "mp_rank_01_model_states.pt").touch()
    with pytest.raises(CheckpointError, match="split over several devices"):
        read(folder)


def test_a_folder_without_weights_says_so(folder):
    (folder / "global_step10" / "mp_rank_00_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match=r"mp_rank_00_model_states\.pt: no such file"):
        read(folder)


def shard(state: dict, folder: Path, name: str, save) -> None:
    names = list(state)
    places = {key: name.format(1 + (i % 2)) for i, key in enumerate(names)}
    for file in set(places.values()):
        save({key: state[key].clone() for key in names if places[key] == file}, folder / file)
    index = "model.safetensors.index.json" if "safetensors" in name else "pytorch_model.bin.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("form", ["bin", "safetensors", "bin_shards", "safetensors_shards", "folder_of_bin"])
def test_joined_weights_are_read_in_every_form_the_script_writes(folder, raw, form):
    state, (first, *_) = raw["weights"], sorted(folder.glob("global_step*"), reverse=True)
    for path in first.iterdir():
        path.unlink()
    if form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif form == "folder_of_bin":
        (folder / "pytorch_model").mkdir()
        torch.save(state, folder / "pytorch_model" / "pytorch_model.bin")
    elif form == "safetensors":
        save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors")
    elif form == "bin_shards":
        shard(state, folder, "pytorch_model-0000{}-of-00002.bin", torch.save)
    else:
        shard(state, folder, "model-0000{}-of-00002.safetensors", save_file)
    check(read(folder), raw)


def test_joined_weights_are_read_when_the_file_itself_is_given(folder, raw):
    torch.save(raw["weights"], folder / "global_step10" / "pytorch_model.bin")
    check(read(folder / "global_step10" / "pytorch_model.bin"), raw)


def test_an_index_cannot_reach_outside_its_folder(folder, raw):
    places = dict.fromkeys(raw["weights"], "../../secret.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match=r"'\.\./\.\./secret\.bin' outside its folder"):
        read(folder)


def test_an_index_whose_tensors_are_missing_names_one(folder, raw):
    torch.save({}, folder / "a.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"text_emb.weight": "a.bin"}}))
    with pytest.raises(CheckpointError):
        read(folder)
