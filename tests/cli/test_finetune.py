"""`--init_from`, `--freeze`, `--train` and `--lora_rank`: a model is trained on, whole, in part, or by adapters."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from dalle3.checkpoint import read_folder, save_checkpoint
from dalle3.cli import main
from dalle3.models.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle3.tokenizers.huggingface import HuggingFace
from tests.golden import FOLDER, golden
from tests.tiny import checkpoint, clip, codec, dalle, decoder, tokenizer, upsampler, write_model
from tests.train.processes import material

LOOP = {"steps": 2, "batch_size": 2, "log_every_n_steps": 1, "sample_every_n_steps": 0, "device": "cpu"}
OPTIM = {"learning_rate": 0.01, "random_resize_crop_lower_ratio": 0.9}
LORA = {"lora_rank": 2, "truncate_captions": None}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Pictures in `pictures`, and a folder for each kind of model."""
    folder = tmp_path_factory.mktemp("models")
    material(folder)
    save_checkpoint(dalle(image_codec=codec()), folder / "dalle", tokenizer=tokenizer())
    save_checkpoint(clip(), folder / "clip", tokenizer=tokenizer())
    found = decoder()
    found.codec = codec()
    save_checkpoint(found, folder / "diffusion")
    save_checkpoint(upsampler(), folder / "upsampler")
    return folder


def train(models: Path, kind: str, out: Path, **flags: object) -> int:
    given = {**LOOP, **OPTIM, "image_text_folder": models / "pictures", "out": out, **flags}
    words = [("--" + name, *([] if value is None else [str(value)])) for name, value in given.items()]
    return main(["train", kind, *(part for word in words for part in word)])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: Path, after: Path) -> set[str]:
    one, other = weights(before), weights(after)
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("kind", ["vae", "clip", "dalle", "diffusion", "upsampler"])
def test_every_model_is_trained_on_from_a_folder_without_naming_its_sizes(kind, models, tmp_path):
    flags = {"truncate_captions": None} if kind in ("dalle", "clip") else {}
    assert train(models, kind, tmp_path / "run", init_from=models / kind, **flags) == 0
    found, before = read_folder(tmp_path / "run" / "step-00000002"), read_folder(models / kind)
    assert (found.kind, found.config) == (before.kind, before.config)
    moved = changed(models / kind, tmp_path / "run" / "step-00000002")
    assert len(moved) > len(before.state) / 2
    largest = max(float((weights(models / kind)[n] - found.state[n]).abs().max()) for n in moved)
    assert largest < 0.03  # two steps away, at 0.01 each


def test_a_decoder_goes_on_by_another_error(models, tmp_path):
    assert train(models, "diffusion", tmp_path / "run", init_from=models / "diffusion", loss="l1") == 0
    assert read_folder(tmp_path / "run" / "step-00000002").config.process.loss == "l1"
    assert "l1" in json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])


def test_a_decoder_is_trained_on_the_one_step_it_is_to_draw_in(models, tmp_path):
    flags = {"respacing": "angle1", "schedule_sampler": "visited", "init_from": models / "diffusion"}
    assert train(models, "diffusion", tmp_path / "run", **flags) == 0
    assert read_folder(tmp_path / "run" / "step-00000002").config.respacing == "angle1"


def test_steps_that_cannot_be_are_one_line(models, tmp_path, capfd):
    assert train(models, "diffusion", tmp_path / "run", init_from=models / "diffusion", respacing="angel1") == 2
    assert "angel1" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dalle_may_get_caption_maps_and_keep_them(models, tmp_path):
    flags = {"truncate_captions": None, "steps": 1}
    assert train(models, "dalle", tmp_path / "one", init_from=models / "dalle", caption_maps=2, **flags) == 0
    grown = read_folder(tmp_path / "one" / "step-00000001")
    assert grown.config.caption_maps == 2
    assert grown.state["caption_maps.words"].any()  # they have learnt something
    assert train(models, "dalle", tmp_path / "two", init_from=tmp_path / "one" / "step-00000001", **flags) == 0
    assert read_folder(tmp_path / "two" / "step-00000001").config == grown.config


def test_a_dalle_may_become_deeper_and_draws_as_before_until_it_learns(models, tmp_path):
    flags = {"truncate_captions": None, "steps": 1}
    before, out = read_folder(models / "dalle"), tmp_path / "one"
    depth = before.config.depth + 3
    assert train(models, "dalle", out, init_from=models / "dalle", depth=depth, train="to_logits", **flags) == 0
    grown = read_folder(out / "step-00000001")
    assert grown.config == dataclasses.replace(before.config, depth=depth)
    for name, tensor in before.state.items():
        assert torch.equal(grown.state[name], tensor) or "to_logits" in name
    more = {"init_from": out / "step-00000001", **flags}
    assert train(models, "dalle", tmp_path / "two", **more) == 0
    found = read_folder(tmp_path / "two" / "step-00000001")
    assert found.state[f"transformer.layers.{depth - 1}.1.scale"].any()
    assert train(models, "dalle", tmp_path / "three", depth=1, **more) == 2  # and never shallower


@pytest.mark.parametrize("growth", [{"depth": 9}, {"caption_maps": 2}])
def test_adapters_and_growth_do_not_go_together(growth, models, tmp_path, capfd):
    assert train(models, "dalle", tmp_path / "run", init_from=models / "dalle", **LORA, **growth) == 2
    assert "leave --depth, --caption_maps and --clip_maps out" in capfd.readouterr().err


def test_caption_maps_of_other_sizes_are_one_line(models, tmp_path, capfd):
    flags = {"truncate_captions": None, "steps": 1}
    assert train(models, "dalle", tmp_path / "one", init_from=models / "dalle", caption_maps=2, **flags) == 0
    start = tmp_path / "one" / "step-00000001"
    assert train(models, "dalle", tmp_path / "two", init_from=start, caption_maps=3, **flags) == 2
    assert "has caption_maps 2, and --caption_maps says 3; leave the flag out" in capfd.readouterr().err


def test_a_dalle_gets_maps_of_a_clips_reading_first_alone_then_with_the_rest(models, tmp_path):
    flags = {"truncate_captions": None, "steps": 1, "clip": models / "clip"}
    assert train(models, "maps", tmp_path / "one", init_from=models / "dalle", clip_maps=2, **flags) == 0
    start = tmp_path / "one" / "step-00000001"
    grown, before = read_folder(start), read_folder(models / "dalle")
    assert (grown.config.clip_maps, grown.config.clip_text.text_width) == (2, 8)
    assert all(torch.equal(grown.state[name], tensor) for name, tensor in before.state.items())
    assert not grown.state["clip_maps.to_dim.weight"].any()  # it draws as it did
    reader = {name: tensor for name, tensor in grown.state.items() if ".reader." in name}
    clip_state = read_folder(models / "clip").state
    assert all(torch.equal(tensor, clip_state[name.partition("reader.")[2]]) for name, tensor in reader.items())

    more = {"truncate_captions": None, "steps": 2, "words_dropout": 0.5}
    assert train(models, "dalle", tmp_path / "two", init_from=start, **more) == 0
    found = read_folder(tmp_path / "two" / "step-00000002")
    assert found.config == grown.config
    assert found.state["clip_maps.to_dim.weight"].any()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in reader.items())
    assert train(models, "dalle", tmp_path / "three", init_from=start, **flags) == 2  # it has that CLIP already


def test_maps_of_a_reading_come_nearer_to_their_pictures(models, tmp_path):
    flags = {"clip": models / "clip", "clip_maps": 2, "truncate_captions": None, "steps": 30, "ema_decay": 0}
    assert train(models, "maps", tmp_path / "run", init_from=models / "dalle", **flags) == 0
    errors = [json.loads(line)["error"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(errors[-5:]) < 0.9 * sum(errors[:5])


def test_a_new_dalle_may_have_maps_of_a_clips_reading(models, tmp_path):
    flags = {"vae_path": models / "dalle" / "codec", "bpe_path": models / "dalle" / "tokenizer.json", "hug": None}
    sizes = {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "text_seq_len": 8, "image_grid": 4, "clip_maps": 2}
    more = {"clip": models / "clip", "truncate_captions": None, "steps": 1}
    assert train(models, "dalle", tmp_path / "run", **flags, **sizes, **more) == 0
    found, clip_state = read_folder(tmp_path / "run" / "step-00000001"), read_folder(models / "clip").state
    name = "text_model.embeddings.token_embedding.weight"
    assert torch.equal(found.state[f"clip_maps.reader.{name}"], clip_state[name])


@pytest.mark.parametrize(
    ("kind", "flags", "line"),
    [
        ("dalle", {"clip_maps": 2}, "clip_maps is 2, and no CLIP reads captions; name one with --clip"),
        ("dalle", {"words_dropout": 0.5}, "words_dropout leaves captions to --clip_maps, and this DALLE has none"),
        ("maps", {}, "this DALLE has no maps of CLIP's reading; give it some with --clip_maps"),
        ("maps", {"clip_maps": 9, "clip": "clip"}, "clip_maps is 9; an entry of this image tokenizer has 8 numbers"),
        ("maps", {"clip_maps": 2, "clip": "other"}, "reads other words than the DALLE"),
        ("maps", {"clip_maps": 2, "clip": "short"}, "reads 4 tokens and the DALLE 8"),
        ("maps", {"clip_maps": 2, "clip": "dalle"}, "is a dalle, not a CLIP"),
        ("maps", {"clip_maps": 2, "clip": "nowhere"}, "nowhere"),
        ("dalle", {"clip": "clip"}, "--clip names what reads captions for --clip_maps, and this DALLE has none"),
    ],
)
def test_readings_that_cannot_be_are_one_line(kind, flags, line, models, tmp_path, capfd):
    if flags.get("clip") == "other":
        words = Tokenizer(WordLevel({"[UNK]": 0, "square": 1}, unk_token="[UNK]"))
        save_checkpoint(clip(), tmp_path / "other", tokenizer=HuggingFace(words))
    if flags.get("clip") == "short":
        found = clip()
        found.config = dataclasses.replace(found.config, context_length=4)
        name = "text_model.embeddings.position_embedding.weight"
        found.state[name] = found.state[name][:4]
        save_checkpoint(found, tmp_path / "short", tokenizer=tokenizer())
    if named := flags.get("clip"):
        place = models if named in ("clip", "dalle") else tmp_path
        flags = {**flags, "clip": place / named}
    out = tmp_path / "run"
    assert train(models, kind, out, init_from=models / "dalle", truncate_captions=None, **flags) == 2
    assert line in capfd.readouterr().err
    assert not out.exists()


def test_a_vae_of_dalle_pytorch_is_trained_on(models, tmp_path):
    path = FOLDER / "ckpt_dvae.pt"
    assert train(models, "vae", tmp_path / "run", init_from=path, steps=1) == 0
    assert read_folder(tmp_path / "run" / "step-00000001").config.num_tokens == 64


@pytest.mark.parametrize("kind", ["gumbel_vq"])
def test_a_tokenizer_of_taming_is_trained_on(kind, models, tmp_path):
    flags = {"init_from": FOLDER / "d_gumbelvq_f8_lightning.ckpt", "steps": 1, "batch_size": 1, "disc_ndf": 4}
    assert train(models, kind, tmp_path / "run", **flags, train="quantize,decoder.conv_out") == 0
    found = read_folder(tmp_path / "run" / "step-00000001")
    assert (found.kind, found.config.num_tokens) == ("gumbel_vq", 64)


def test_an_unet_of_guided_diffusion_is_trained_on_by_its_flags(models, tmp_path):
    torch.save(golden("f_unet_jack_emb")["state_dict"], tmp_path / "model010000.pt")
    config = DiscreteVAEConfig(image_size=16, num_tokens=8, codebook_dim=16, num_layers=2, hidden_dim=8)
    save_checkpoint(checkpoint("discrete_vae", config, DiscreteVAE), tmp_path / "vae")
    layout = {"image_size": 64, "num_channels": 32, "num_res_blocks": 1, "attention_resolutions": 16}
    heads = {"channel_mult": "1,1,1,1", "num_head_channels": 32}
    flags = {**layout, **heads, "init_from": tmp_path / "model010000.pt", "vae_path": tmp_path / "vae", "steps": 1}
    assert train(models, "diffusion", tmp_path / "run", **flags, emb_dropout=0.0, batch_size=1) == 0
    assert read_folder(tmp_path / "run" / "step-00000001").config.unet.emb_input_dims == 16


def test_a_dalle_learns_the_codes_of_openais_files(models, tmp_path):
    sizes = {"train_bpe": 128, "text_seq_len": 32, "image_grid": 2, "dim": 16, "depth": 1, "heads": 1, "dim_head": 16}
    assert train(models, "dalle", tmp_path / "run", vae_path=FOLDER / "openai_dvae", **sizes) == 0
    found = read_folder(tmp_path / "run" / "step-00000002")
    assert found.codec is not None
    assert (found.codec.kind, found.config.num_image_tokens) == ("openai_dvae", found.codec.config.num_tokens)
    further = {"init_from": tmp_path / "run" / "step-00000002", "lora_rank": 2}
    assert train(models, "dalle", tmp_path / "more", **further) == 0


def test_a_packed_dalle_is_trained_on_by_codes_of_its_own_image_tokenizer(models, tmp_path):
    packed, codes = tmp_path / "packed", tmp_path / "codes"
    save_checkpoint(dalle(image_codec=codec()), packed, dtype=torch.bfloat16, tokenizer=tokenizer())
    pictures = ["--image_text_folder", str(models / "pictures"), "--vae_path", str(packed / "codec")]
    assert main(["encode", *pictures, "--out", str(codes)]) == 0
    flags = {"image_text_folder": codes, "truncate_captions": None}
    assert train(models, "dalle", tmp_path / "run", init_from=packed, **flags) == 0
    trained = read_folder(tmp_path / "run" / "step-00000002")
    assert trained.codec_info == read_folder(packed).codec_info


def test_frozen_parts_stay_and_take_no_optimizer_state(models, tmp_path):
    flags = {"init_from": models / "dalle", "truncate_captions": None, "ema_decay": 0.5}
    out = tmp_path / "run"
    assert train(models, "dalle", out, **flags, freeze="transformer.layers.0,*_emb,to_logits.bias") == 0
    moved = changed(models / "dalle", out / "step-00000002")
    assert moved
    assert not any(name.startswith(("transformer.layers.0.", "text_emb", "image_emb")) for name in moved)
    assert "to_logits.weight" in moved
    state = torch.load(out / "step-00000002" / "train" / "optimizer.pt", weights_only=True)["state"]
    assert len(state) == len(moved)


def test_only_the_parts_of_train_change(models, tmp_path):
    flags = {"init_from": models / "dalle", "truncate_captions": None, "train": "transformer.layers.*.fn,to_logits"}
    assert train(models, "dalle", tmp_path / "run", **flags, freeze="to_out") == 0
    moved = changed(models / "dalle", tmp_path / "run" / "step-00000002")
    parts = {name.rpartition(".")[0].rpartition(".")[2] for name in moved}
    assert parts == {"to_qkv", "up_gate", "down", "to_logits"}


def test_fresh_models_can_be_trained_in_part(models, tmp_path):
    sizes = {"image_size": 16, "num_layers": 2, "num_tokens": 16, "hidden_dim": 8, "codebook_dim": 8}
    assert train(models, "vae", tmp_path / "run", **sizes, freeze="encoder", save_every_n_steps=1) == 0
    moved = changed(tmp_path / "run" / "step-00000001", tmp_path / "run" / "step-00000002")
    assert moved
    assert not any(name.startswith("encoder") for name in moved)


def test_adapters_train_apart_and_merge(models, tmp_path, capfd):
    out = tmp_path / "run"
    assert train(models, "dalle", out, init_from=models / "dalle", **LORA, lora_merge=None) == 0
    adapter, merged = out / "step-00000002", out / "merged"
    assert f"{merged} holds it with the DALLE it belongs to" in capfd.readouterr().err
    assert set(json.loads((adapter / "config.json").read_text())["config"]) >= {"rank", "base_path", "base_sha256"}
    assert all(name.endswith((".lora_a", ".lora_b")) for name in weights(adapter))
    assert not (adapter / "codec").exists()
    assert not (adapter / "train" / "beside.safetensors").exists()
    adapted = {name.replace(".lora_a", ".weight") for name in weights(adapter) if name.endswith(".lora_a")}
    assert changed(models / "dalle", merged) == adapted
    assert main(["convert", str(adapter), str(tmp_path / "whole")]) == 0
    assert changed(tmp_path / "whole", merged) == set()
    assert read_folder(tmp_path / "whole").codec is not None


def test_a_dalle_is_trained_by_what_a_clip_knows_of_its_pictures(models, tmp_path):
    flags = {"init_from": models / "dalle", "clip": models / "clip", "truncate_captions": None}
    drawn = {"group_size": 2, "among": 5, "cond_scale": 1.5, "sample_every_n_steps": 2}
    assert train(models, "reward", tmp_path / "run", **flags, **drawn) == 0
    found = read_folder(tmp_path / "run" / "step-00000002")
    assert (found.kind, found.recommended.said) == ("dalle", {"cond_scale": 1.5})
    assert len(changed(models / "dalle", tmp_path / "run" / "step-00000002")) > len(found.state) / 2
    assert (tmp_path / "run" / "samples" / "step-00000002.png").is_file()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["reward"] < 0 and 0 <= row["recognised"] <= 1 and row["image_loss"] > 0 for row in rows)


def test_the_clip_beside_a_dalle_gives_the_rewards_unless_another_is_named(models, tmp_path, capfd):
    flags = {"truncate_captions": None, "group_size": 2, "steps": 1}
    assert train(models, "reward", tmp_path / "run", init_from=models / "dalle", **flags) == 2
    assert "no CLIP to rank with" in capfd.readouterr().err
    whole = write_model(tmp_path / "whole")
    assert train(models, "reward", tmp_path / "run", init_from=whole, **flags) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "rewards are for pictures that a DALLE draws already; name it with --init_from"),
        ({"init_from": "dalle", "temperature": 0}, "temperature is 0; a DALLE that is rewarded must draw different"),
        ({"init_from": "dalle", "group_size": 1}, "group_size is 1; it must be at least 2"),
        ({"init_from": "dalle", "deepspeed": None, "zero_stage": 3}, "zero_stage is 3, which divides the weights"),
        ({"init_from": "clip"}, "is a clip, not a DALLE, which --init_from takes"),
    ],
)
def test_rewards_that_cannot_be_are_one_line(flags, said, models, tmp_path, capfd):
    paths = {name: models / value if name == "init_from" else value for name, value in flags.items()}
    assert train(models, "reward", tmp_path / "run", clip=models / "clip", **paths) == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_adapter_folder_draws(models, tmp_path, capfd):
    assert train(models, "dalle", tmp_path / "run", init_from=models / "dalle", **LORA, steps=1) == 0
    draw = ["generate", "--text", "a red circle", "--num_images", "1", "--outputs_dir", str(tmp_path / "out")]
    adapter = tmp_path / "run" / "step-00000001"
    assert main([*draw, "--dalle_path", str(adapter), "--lora_scale", "0.5"]) == 0
    assert main([*draw, "--dalle_path", str(models / "dalle"), "--lora", str(adapter)]) == 0
    assert main(["inspect", str(adapter)]) == 0
    out = capfd.readouterr().out
    assert "kind        dalle_lora" in out
    assert f"its DALLE, {models / 'dalle'} of sha256" in out


def test_train_dalle_takes_the_same_flags(models, tmp_path):
    words = {"init_from": models / "dalle", "lora_rank": 2, "dalle_output_file_name": tmp_path / "run", **LOOP}
    flags = [part for name, value in words.items() for part in (f"--{name}", str(value))]
    assert main(["train_dalle", "--image_text_folder", str(models / "pictures"), "--truncate_captions", *flags]) == 0
    assert read_folder(tmp_path / "run" / "step-00000002").kind == "dalle_lora"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"freeze": "transformr"}, "--freeze has 'transformr', which no part is called; the model has image_emb,"),
        ({"train": "norm", "freeze": "norm"}, "--freeze norm leaves nothing to train"),
        ({"dim": 32}, "has dim 16, and --dim says 32; leave the flag out (other shapes than the configuration gives: "),
        ({"attn_types": "axial_row"}, "has attn_types ('full',), and --attn_types says ('axial_row',); leave"),
        ({"train_bpe": 64}, "--train_bpe makes a text tokenizer, and"),
        ({"lora_rank": 2, "freeze": "norm"}, "--lora_rank freezes all but the adapters; leave --freeze"),
        ({"lora_rank": 2, "lora_targets": "norm"}, "lora_targets has 'norm', which names no linear layer"),
        ({"lora_merge": None}, "--lora_merge need a --lora_rank"),
        ({"init_from": "clip", "lora_rank": 2}, "is a clip, not a DALLE, which --init_from takes. A CLIP belongs to"),
        ({"init_from": "missing"}, "missing: no such file"),
    ],
)
def test_what_cannot_be_is_one_line(flags, said, models, tmp_path, capfd):
    given = {"init_from": "dalle", "truncate_captions": None, **flags}
    given["init_from"] = models / given["init_from"]
    assert train(models, "dalle", tmp_path / "run", **given) == 2
    err = capfd.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_another_kind_is_one_line(models, tmp_path, capfd):
    assert train(models, "vae", tmp_path / "run", init_from=models / "dalle") == 2
    assert "is a dalle, not the discrete_vae to begin with, which --init_from takes" in capfd.readouterr().err


def test_adapters_without_a_dalle_are_one_line(models, tmp_path, capfd):
    assert train(models, "dalle", tmp_path / "run", lora_rank=2, vae_path=models / "vae") == 2
    assert "--lora_rank trains adapters beside a DALLE; name it with --init_from" in capfd.readouterr().err


def test_a_run_is_continued_with_the_parts_and_the_dalle_it_was_begun_with(models, tmp_path, capfd):
    given = {"init_from": models / "dalle", "truncate_captions": None}
    out = tmp_path / "run"
    assert train(models, "dalle", out, **given, freeze="norm") == 0
    assert train(models, "dalle", out, **given, freeze="to_logits", resume="auto") == 2
    assert "begun with tuning freeze ['norm'], now ['to_logits']; leave that as it was" in capfd.readouterr().err
    adapters = tmp_path / "adapters"
    assert train(models, "dalle", adapters, **given, lora_rank=2) == 0
    other = dalle(image_codec=codec())
    other.state["norm.weight"] += 1
    save_checkpoint(other, tmp_path / "other", tokenizer=tokenizer())
    capfd.readouterr()
    again = {**given, "lora_rank": 2, "resume": "auto"}
    assert train(models, "dalle", adapters, **{**again, "init_from": tmp_path / "other"}) == 2
    assert "begun with tuning base_sha256" in capfd.readouterr().err
    assert train(models, "dalle", adapters, **again, steps=3) == 0
