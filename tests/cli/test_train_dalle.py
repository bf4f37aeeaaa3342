"""`train_dalle.py`: the flags of DALL-3 and DALLE-pytorch, new models and old ones."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dalle3.checkpoint import read_folder, save_checkpoint
from dalle3.cli import main, train_dalle
from dalle3.train.optim import Plateau
from dalle3.train.run import read_position
from tests import tiny
from tests.golden import FOLDER
from tests.train.processes import material

LINE = """--image_text_folder data --wds img,cap --truncate_captions --random_resize_crop_lower_ratio 0.75 --chinese
--taming --hug --bpe_path bpe.json --dalle_output_file_name dalle --fp16 --amp --wandb_name coco --wandb_entity me
--stable_softmax --distributed_backend deepspeed --distr_backend deepspeed --deepspeed --deepspeed_config ds.json
--local_rank 0 --flops_profiler --epochs 20 --save_every_n_steps 1000 --keep_n_checkpoints 3 --batch_size 4 --ga_steps 1
--learning_rate 3e-4 --clip_grad_norm 0.5 --lr_decay --dim 512 --text_seq_len 256 --depth 2 --heads 8 --dim_head 64
--ff_dropout 0.0 --attn_dropout 0.0 --reversible --loss_img_weight 7 --attn_types full,axial_row --shift_tokens
--rotary_emb --shared_attn_ids 0,1 --shared_ff_ids 0,1 --share_input_output_emb --vqgan_model_path a.ckpt
--vqgan_config_path a.yaml --num_workers 2"""
MODEL = {"text_seq_len": 32, "dim": 16, "depth": 1, "heads": 1, "dim_head": 16, "train_bpe": 128}
LOOP = {"batch_size": 2, "log_every_n_steps": 1, "sample_every_n_steps": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> dict[str, Path]:
    return material(tmp_path_factory.mktemp("data"))


def train(*switches: str, **given: object) -> int:
    words = [str(part) for name, value in {**LOOP, **given}.items() for part in (f"--{name}", value)]
    return main(["train_dalle", *words, *(f"--{name}" for name in switches)])


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def words(tmp_path) -> Path:
    """A tokenizer as large as the vocabulary of the fork's file."""
    names = ["[UNK]", "a", "red", "blue", "green", "yellow", "circle", "square", "star", "small", "large", "and"]
    vocabulary = {name: i for i, name in enumerate(names + [f"w{i}" for i in range(100 - len(names))])}
    whole = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    whole.save(str(tmp_path / "words.json"))
    return tmp_path / "words.json"


@pytest.mark.parametrize("path", ["--vae_path vae.pt", "--dalle_path dalle.pt"])
def test_every_flag_of_the_originals_is_taken(path):
    parser = argparse.ArgumentParser()
    train_dalle.add_arguments(parser)
    args = parser.parse_args([*LINE.split(), *path.split()])
    assert args.attn_types == ("full", "axial_row")
    assert (args.loss_img_weight, args.distributed_backend, args.fp16) == (7.0, "deepspeed", True)


def test_what_the_originals_leave_off_by_default_is_off(flags, tmp_path):
    assert train(**flags, **MODEL, steps=1, dalle_output_file_name=tmp_path / "dalle") == 0
    config = read_folder(tmp_path / "dalle" / "step-00000001").config
    assert (config.rotary_emb, config.shift_tokens, config.image_grid) == (False, False, 4)


def test_a_run_goes_on_from_the_forks_file_with_its_epochs_and_its_adam(flags, words, tmp_path, capfd):
    given = {"image_text_folder": flags["image_text_folder"], "bpe_path": words, "epochs": 5}
    out = tmp_path / "more"
    assert train("hug", **given, dalle_path=FOLDER / "ckpt_fork_dalle.pt", dalle_output_file_name=out) == 0
    assert "continuing 24 of 30 steps are done" in capfd.readouterr().err  # 4 of 5 epochs of 12 pictures by twos
    assert [row["step"] for row in metrics(out)] == [25, 26, 27, 28, 29, 30]
    state = torch.load(out / "step-00000030" / "train" / "optimizer.pt", weights_only=True)["state"]
    assert {int(moments["step"]) for moments in state.values()} == {9}  # three of the file's and six of ours
    assert read_position(out / "step-00000030").consumed == 60


def test_a_model_is_not_trained_on_as_another(flags, words, tmp_path, capfd):
    given = {"image_text_folder": flags["image_text_folder"], "bpe_path": words}
    path = FOLDER / "ckpt_fork_dalle.pt"
    assert train("hug", **given, dalle_path=path, dim=512, dalle_output_file_name=tmp_path / "a") == 2
    assert "has dim 48, and --dim says 512; leave the flag out" in capfd.readouterr().err


def test_a_run_of_ours_goes_on_from_a_checkpoint_given_as_dalle_path(flags, tmp_path):
    given = {**flags, **MODEL, "steps": 4, "save_every_n_steps": 2}
    assert train(**given, dalle_output_file_name=tmp_path / "whole") == 0
    given = {"image_text_folder": flags["image_text_folder"], "steps": 4}
    start, more = tmp_path / "whole" / "step-00000002", tmp_path / "more"
    assert train(**given, dalle_path=start, dalle_output_file_name=more) == 0
    for row, expected in zip(metrics(more), metrics(tmp_path / "whole")[2:], strict=True):
        assert (row["step"], row["loss"]) == (expected["step"], expected["loss"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"vae_path": "a", "dalle_path": "b"}, "--vae_path begins a DALLE and --dalle_path continues one"),
        ({"vae_path": "a", "distr_backend": "horovod"}, "horovod is not supported; start several processes with"),
        ({"vae_path": "a", "zero_stage": 2}, "are for DeepSpeed; add --deepspeed"),
        ({"vae_path": "missing.pt"}, "missing.pt"),
    ],
)
def test_flags_that_cannot_be_are_one_line(given, said, flags, tmp_path, capfd):
    whole = {"image_text_folder": flags["image_text_folder"], "dalle_output_file_name": tmp_path / "a"}
    if "zero_stage" in given:
        given = {**given, **flags, **MODEL}
    assert train(**whole | given) == 2
    err = capfd.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_without_an_image_tokenizer_the_flag_is_named(flags, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train(image_text_folder=flags["image_text_folder"], dalle_output_file_name=tmp_path / "a") == 2
    assert "a new DALLE needs an image tokenizer" in capfd.readouterr().err


@pytest.mark.parametrize("switch", ["fp16", "amp"])
def test_half_precision_is_float16_with_a_scaled_loss(switch, flags, tmp_path):
    assert train(switch, **flags, **MODEL, steps=1, dalle_output_file_name=tmp_path / "dalle") == 0
    assert json.loads((tmp_path / "dalle" / "config.json").read_text())["loop"]["dtype"] == "float16"
    assert "loss_scale" in metrics(tmp_path / "dalle")[0]


def test_the_profiler_counts_operations_and_ends(flags, tmp_path, capfd):
    assert train("flops_profiler", **flags, **MODEL, dalle_output_file_name=tmp_path / "dalle") == 0
    title, whole, *parts, both = capfd.readouterr().out.splitlines()
    operations = [int(line.split()[0].replace(",", "")) for line in (whole, *parts, both)]
    assert (title, whole.split()[1]) == ("operations of a sample, forward", "DalleObjective")
    assert any("transformer.layers.0.1.fn" in part for part in parts)
    assert max(operations[1:-1]) < operations[0] < operations[-1] < 3.5 * operations[0]
    assert not (tmp_path / "dalle").exists()


def test_the_learning_rate_falls_as_torchs_on_a_plateau():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = ReduceLROnPlateau(optimizer, factor=0.5, patience=10, cooldown=10)
    ours, losses = Plateau(), [2.0, 1.0, *[1.0] * 40, 0.5, *[0.6] * 40]
    for loss in losses:
        theirs.step(loss)
        ours.end_epoch(loss)
        assert ours.factor == optimizer.param_groups[0]["lr"]
    assert ours.factor < 0.5


def test_lr_decay_is_kept_over_a_resumed_run(flags, tmp_path):
    given = {**flags, **MODEL, "save_every_n_steps": 7, "dalle_output_file_name": tmp_path / "dalle"}
    assert train("lr_decay", **given, steps=7) == 0
    assert read_position(tmp_path / "dalle" / "step-00000007").plateau.count == 1  # an epoch is six steps
    assert train("lr_decay", **given, steps=8, resume="auto") == 0
    plateau = read_position(tmp_path / "dalle" / "step-00000008").plateau
    assert plateau.count == 2
    assert plateau.best is not None


def test_a_clip_reads_the_captions_of_a_new_dalle_here_too(flags, tmp_path, capfd):
    save_checkpoint(tiny.clip(), tmp_path / "clip", tokenizer=tiny.tokenizer())
    words = {"bpe_path": tmp_path / "clip" / "tokenizer.json", "text_seq_len": 8, "clip_maps": 2}
    given = {**flags, **{name: MODEL[name] for name in ("dim", "depth", "heads", "dim_head")}, **words, "steps": 1}
    switches = ("hug", "truncate_captions")
    assert train(*switches, **given, clip=tmp_path / "clip", dalle_output_file_name=tmp_path / "dalle") == 0
    assert read_folder(tmp_path / "dalle" / "step-00000001").config.clip_text.embed_dim == 8
    assert train(*switches, **given, dalle_output_file_name=tmp_path / "none") == 2
    assert "clip_maps is 2, and no CLIP reads captions; name one with --clip" in capfd.readouterr().err
