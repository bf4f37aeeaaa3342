"""`dalle3 encode`: pictures in, shards of codes out, that a DALLE trains on as on the pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dalle3.checkpoint import build, fingerprint, read_folder, save_checkpoint
from dalle3.cli import main
from dalle3.data.codes import CodeShards
from dalle3.inputs import encode_picture, read_picture
from tests.tiny import codec
from tests.train.processes import material


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> dict[str, Path]:
    return material(tmp_path_factory.mktemp("data"))


def encode(**flags: object) -> int:
    return main(["encode", *(str(part) for name, value in flags.items() for part in (f"--{name}", value))])


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("codes-*.safetensors"))


def content(path: Path) -> tuple:
    """What a shard holds; safetensors writes the lines of its header in any order."""
    found = CodeShards([path])
    return found.codec, found.codes.tolist(), found.captions


def test_each_picture_is_encoded_once_with_all_its_captions(flags, tmp_path):
    assert encode(**flags, out=tmp_path / "codes", shard_size=5) == 0
    assert len(shards(tmp_path / "codes")) == 3
    found = CodeShards(shards(tmp_path / "codes"))
    assert (len(found), tuple(found.load(0).content.shape)) == (12, (4, 4))
    captions = (flags["image_text_folder"] / "0.txt").read_text().splitlines()
    assert list(found.load(0).captions) == captions


def test_a_dalle_trains_on_codes_as_on_pictures(flags, tmp_path):
    assert encode(**flags, out=tmp_path / "codes") == 0
    model = "--train_bpe 128 --text_seq_len 32 --image_grid 4 --dim 16 --depth 1 --heads 1 --dim_head 16"
    loop = "--steps 2 --batch_size 4 --log_every_n_steps 1 --sample_every_n_steps 0 --random_resize_crop_lower_ratio 1"
    for data in (flags["image_text_folder"], tmp_path / "codes"):
        out = tmp_path / f"run_{data.name}"
        line = f"train dalle --image_text_folder {data} --vae_path {flags['vae_path']} --out {out} {model} {loop}"
        assert main(line.split()) == 0
        rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2]


LEARNERS = {
    "dalle": "train dalle --train_bpe 128 --text_seq_len 32 --image_grid 4 --dim 16 --depth 1 --heads 1 --dim_head 16",
    "train_dalle": "train_dalle --train_bpe 128 --text_seq_len 32 --dim 16 --depth 1 --heads 1 --dim_head 16",
    "diffusion": "train diffusion --image_size 16 --num_channels 32 --channel_mult 1,1,1,1 --num_res_blocks 1 "
    "--attention_resolutions 4 --emb_output_dims 32",
}


@pytest.fixture(scope="module")
def packed(flags, tmp_path_factory) -> Path:
    """The image tokenizer in bfloat16."""
    folder = tmp_path_factory.mktemp("packed") / "codec"
    save_checkpoint(read_folder(flags["vae_path"]), folder, dtype=torch.bfloat16)
    return folder


def test_an_image_tokenizer_in_bfloat16_computes_in_float32_and_is_known_by_its_file(flags, packed, tmp_path):
    assert encode(**{**flags, "vae_path": packed, "out": tmp_path / "codes"}) == 0
    found, file = CodeShards(shards(tmp_path / "codes")), read_folder(packed)
    assert found.codec.sha256 == fingerprint(file.state)
    picture = next(iter(flags["image_text_folder"].glob("*.png")))
    network = build(file, device=torch.device("cpu"), dtype=torch.float32)
    codes = encode_picture(read_picture(str(picture)), network, grid=4, device=torch.device("cpu"))
    assert any(torch.equal(codes.squeeze(), found.load(index).content) for index in range(len(found)))


@pytest.mark.parametrize("learner", LEARNERS)
def test_what_is_trained_keeps_an_image_tokenizer_in_bfloat16_as_it_is(learner, flags, packed, tmp_path):
    out = "dalle_output_file_name" if learner == "train_dalle" else "out"
    line = (
        f"{LEARNERS[learner]} --image_text_folder {flags['image_text_folder']} --vae_path {packed} --{out} {tmp_path}"
    )
    assert main([*line.split(), "--steps", "1", "--batch_size", "2", "--sample_every_n_steps", "0"]) == 0
    kept, file = read_folder(tmp_path / "step-00000001").codec, read_folder(packed)
    assert fingerprint(kept.state) == fingerprint(file.state)


def test_an_interrupted_call_is_taken_up(flags, tmp_path, capfd):
    out = tmp_path / "codes"
    assert encode(**flags, out=out, shard_size=5) == 0
    kept, again = shards(out)[0], shards(out)[1]
    whole, before = content(again), kept.stat().st_mtime_ns
    again.unlink()
    capfd.readouterr()
    assert encode(**flags, out=out, shard_size=5) == 0
    said = capfd.readouterr().err
    assert (said.count("pictures, "), f"{again}: 5 pictures" in said) == (1, True)
    assert (content(again), kept.stat().st_mtime_ns) == (whole, before)


def test_several_processes_divide_the_shards(flags, tmp_path, monkeypatch):
    assert encode(**flags, out=tmp_path / "one", shard_size=5) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        assert encode(**flags, out=tmp_path / "two", shard_size=5) == 0
        assert len(shards(tmp_path / "two")) == (2, 3)[rank]
    for one, two in zip(shards(tmp_path / "one"), shards(tmp_path / "two"), strict=True):
        assert content(one) == content(two)


def test_codes_of_two_image_tokenizers_do_not_mix(flags, tmp_path, capfd):
    assert encode(**flags, out=tmp_path / "codes", shard_size=5) == 0
    save_checkpoint(codec(seed=1), tmp_path / "other")
    assert encode(**{**flags, "vae_path": tmp_path / "other"}, out=tmp_path / "codes", shard_size=5) == 2
    err = capfd.readouterr().err
    assert "was begun with codec" in err
    assert err.splitlines()[-1].endswith("name another --out, or remove it first")


@pytest.mark.parametrize("content", ["no JSON", "[1]", "7", "\xff"])
def test_a_folder_with_foreign_notes_is_one_line(content, flags, tmp_path, capfd):
    (tmp_path / "encode.json").write_text(content, encoding="latin-1")
    assert encode(**flags, out=tmp_path) == 2
    assert "not what `dalle3 encode` writes" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--out codes", "--image_text_folder, --vae_path must be given"),
        ("--out codes --vae_path v --image_text_folder p --image_grid 0", "image_grid is 0"),
    ],
)
def test_flags_that_cannot_be_are_one_line(line, said, capfd):
    assert main(["encode", *line.split()]) == 2
    assert said in capfd.readouterr().err


def test_a_shard_names_the_image_tokenizer_that_made_it(flags, tmp_path):
    assert encode(**flags, out=tmp_path / "codes") == 0
    found = CodeShards(shards(tmp_path / "codes")).codec
    assert (found.kind, found.vocab, found.grid) == ("discrete_vae", 16, 4)
    assert found.sha256 == fingerprint(read_folder(flags["vae_path"]).state)
