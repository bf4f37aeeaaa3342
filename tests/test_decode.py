"""The second stage as a stream of events, on tiny networks with random weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dalle3.assemble_decoder import load_decoder
from dalle3.checkpoint import save_checkpoint
from dalle3.decode import Decoding, Job, PictureDecoder, Preview, run
from dalle3.decode_request import DecodeRequest
from dalle3.errors import CheckpointError, CodesError, ConfigError, ImageError
from dalle3.pipeline import Progress, Result, Stopped
from dalle3.runtime import generator, peak_bytes
from dalle3.steering import split_prompts
from diffusion.errors import DiffusionError
from diffusion.process import Process
from diffusion.samplers import SAMPLERS, finish, per_image_noise
from tests import tiny

# Without a limit and without clipping, as DALL-3 had it, ancestral sampling of an untrained network only saturates.
SAMPLER_NAMES = tuple(name for name in SAMPLERS if name != "ddpm")


def write_stage_two(folder):
    """A model with all the parts of the second stage beside each other."""
    tiny.write_model(folder)
    save_checkpoint(tiny.decoder(), folder / "decoder")
    save_checkpoint(tiny.upsampler(), folder / "upsampler")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_stage_two(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def decoder(folder) -> PictureDecoder:
    return load_decoder(folder, device="cpu", enlarges=True)


def job(seed: int = 0, *, index: int = 0, side: int = 4) -> Job:
    codes = torch.randint(0, tiny.CODES, (side, side), generator=torch.Generator().manual_seed(seed))
    return Job(name=f"{seed}.npy", index=index, codes=codes)


def results(decoder, *jobs, **request) -> list[Result]:
    return [event for event in run(decoder, DecodeRequest(**request), jobs) if isinstance(event, Result)]


def pixels(result: Result) -> bytes:
    return result.picture.image.tobytes()


def test_a_picture_is_the_sample_of_its_noise_and_codes(decoder):
    (found,) = results(decoder, job(3, index=5), seed=7, sampler="ddim", steps=6)
    rng = generator(7, "decode", 5)
    network, process = decoder.unet, Process(decoder.unet.settings.process, "angle6")
    with torch.no_grad():
        embeddings = decoder.codec.embed(job(3).codes[None])
    noise = per_image_noise([rng])
    plain = process.denoiser(lambda x, t: network(x, t, embeddings=embeddings))

    def denoise(x, t):
        prediction = plain(x, t)
        return dataclasses.replace(prediction, x0=prediction.x0.clamp(-1, 1))

    sample = finish(SAMPLERS["ddim"](denoise, noise(torch.empty(1, 3, 16, 16)), process=process, noise=noise))
    expected = ((sample[0] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(found.picture.image).astype(float) - expected).max() <= 1


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_every_sampler_draws_with_and_without_clip(decoder, sampler):
    plain, steered = (
        results(decoder, job(), sampler=sampler, steps=4, clip_guidance=on, text="a star", cutn=2)[0]
        for on in (False, True)
    )
    assert pixels(plain) != pixels(steered)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_begins_at_the_noise(decoder, sampler):
    (stage,) = Decoding(decoder, DecodeRequest(sampler=sampler, steps=1), [job()]).stages
    assert stage.process.timestep_map == (999,)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_company_changes_no_picture(decoder, batch_size):
    jobs = [job(seed, index=index) for seed in (0, 1) for index in (0, 1, 2)]
    settings = {"clip_guidance": True, "text": "a red circle", "cutn": 2, "sampler": "ddpm", "steps": 3}
    together = results(decoder, *jobs, batch_size=batch_size, **settings)
    alone = [results(decoder, one, **settings)[0] for one in jobs]
    assert [*map(pixels, together)] == [*map(pixels, alone)]
    assert len({*map(pixels, together)}) == 6
    assert [result.place for result in together] == list(range(6))


def test_codes_of_other_sizes_make_pictures_of_other_sizes(decoder):
    found = results(decoder, job(side=4), job(side=6), job(side=8))
    assert [result.picture.image.size for result in found] == [(16, 16), (24, 24), (32, 32)]


def test_previews_come_while_it_runs(decoder):
    events = list(run(decoder, DecodeRequest(steps=6, preview_every=2), [job()]))
    previews = [event for event in events if isinstance(event, Preview)]
    assert [(event.step, event.steps) for event in previews] == [(2, 6), (4, 6)]
    assert [type(event) for event in events[-2:]] == [Result, Progress]
    assert not any(isinstance(event, Preview) for event in run(decoder, DecodeRequest(preview_every=0), [job()]))


def test_the_tick_grows_with_every_step_of_both_stages(decoder):
    ticks: list[float] = []
    list(run(decoder, DecodeRequest(upsample=32), [job(), job(1)], tick=ticks.append))
    assert ticks == sorted(ticks)
    assert ticks[-1] == 2
    assert len(ticks) == 2 * (4 + 2)


def test_a_stop_keeps_what_is_finished(decoder):
    def tick(done: float) -> None:
        if done > 2.5:
            raise Stopped

    events = run(decoder, DecodeRequest(), [job(seed) for seed in range(5)], tick=tick)
    assert [event.place for event in events if isinstance(event, Result)] == [0, 1]


def test_stopping_early_gives_the_picture_expected_there(decoder):
    ticks: list[float] = []
    events = list(run(decoder, DecodeRequest(steps=10, stop_at=600, preview_every=6), [job()], tick=ticks.append))
    assert len(ticks) == 6
    whole = list(run(decoder, DecodeRequest(steps=10, preview_every=6), [job()]))
    assert pixels(next(event for event in events if isinstance(event, Result))) == whole[0].image.tobytes()


def test_guidance_on_the_codes_changes_the_picture(decoder):
    plain, same, more = (results(decoder, job(), guidance_scale=scale)[0] for scale in (1.0, 1.0, 3.0))
    assert pixels(plain) == pixels(same) != pixels(more)


def test_a_decoder_that_sees_the_picture_of_the_codes_draws_from_its_folder(tmp_path):
    found = dataclasses.replace(tiny.decoder(low_res=True), codec=tiny.codec())
    save_checkpoint(found, tmp_path / "decoder")
    seeing = load_decoder(tmp_path / "decoder", device="cpu")
    assert seeing.unet.conditions(seeing.codec, job().codes[None])["low_res"].shape == (1, 3, 16, 16)
    plain, guided, larger = (
        results(seeing, job(side=side), guidance_scale=scale)[0] for side, scale in ((4, 1.0), (4, 3.0), (6, 1.0))
    )
    assert pixels(plain) != pixels(guided)
    assert larger.picture.image.size == (24, 24)


def test_a_decoder_of_codes_and_classes_draws_the_class_asked_for(tmp_path):
    found = dataclasses.replace(tiny.decoder(num_classes=3), codec=tiny.codec())
    save_checkpoint(found, tmp_path / "decoder")
    classes = load_decoder(tmp_path / "decoder", device="cpu")
    first, last, guided = (
        results(classes, job(), label=label, guidance_scale=scale)[0] for label, scale in ((0, 1.0), (2, 1.0), (2, 3.0))
    )
    assert len({pixels(one) for one in (first, last, guided)}) == 3
    for label, complaint in ((None, "none is given"), (3, "label is 3"), (-1, "label is -1")):
        with pytest.raises(ConfigError, match=f"conditioned on 3 classes, and {complaint}; say which, from 0: --label"):
            results(classes, job(), label=label)


def test_guidance_on_the_codes_needs_a_null_embedding(folder, tmp_path):
    save_checkpoint(tiny.decoder(null_embedding=False), tmp_path / "decoder")
    plain = load_decoder(tmp_path / "decoder", vae=folder / "codec", device="cpu")
    assert results(plain, job())
    with pytest.raises(ConfigError, match=r"guidance_scale is 2\.0, and this decoder was trained without a null"):
        results(plain, job(), guidance_scale=2.0)


@pytest.fixture(scope="module")
def choosy(tmp_path_factory) -> PictureDecoder:
    """The same decoder with a guidance of its own."""
    found = dataclasses.replace(tiny.decoder(), codec=tiny.codec())
    found.config = dataclasses.replace(found.config, guidance_scale=3.0)
    folder = tmp_path_factory.mktemp("models") / "decoder"
    save_checkpoint(found, folder)
    return load_decoder(folder, device="cpu")


def test_a_decoder_is_guided_as_it_says_where_nothing_is_asked_for(decoder, choosy):
    found, asked = results(choosy, job())[0], results(decoder, job(), guidance_scale=3.0)[0]
    assert pixels(found) == pixels(asked)
    assert found.picture.recipe["settings"]["guidance_scale"] == 3.0


def test_no_guidance_can_be_asked_of_a_decoder_that_brings_one(decoder, choosy):
    assert pixels(results(choosy, job(), guidance_scale=1.0)[0]) == pixels(results(decoder, job())[0])


def test_guidance_on_the_codes_is_none_of_the_upsamplers(decoder):
    assert results(decoder, job(), guidance_scale=2.0, upsample=32)


def score(decoder, found: Result, text: str) -> float:
    clip, tokenize = decoder.clip
    image = torch.from_numpy(np.array(found.picture.image)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        return float((clip.encode_image(image) * clip.encode_text(tokenize([text]))).sum())


@pytest.mark.parametrize("guidance", ["fast", "exact"])
def test_clip_guidance_at_25_steps_raises_the_clip_score(decoder, guidance):
    jobs = [job(seed) for seed in range(3)]
    steered = {"clip_guidance": True, "text": "a blue star", "guidance": guidance, "cutn": 4}
    before, after = (results(decoder, *jobs, steps=25, **more) for more in ({}, steered))
    gains = [
        score(decoder, b, "a blue star") - score(decoder, a, "a blue star") for a, b in zip(before, after, strict=True)
    ]
    assert min(gains) > 0.02


@pytest.mark.parametrize(("guidance", "cutn", "seen"), [("exact", None, 16), ("fast", None, 8), ("fast", 5, 5)])
def test_clip_sees_so_many_cutouts_in_each_step(decoder, guidance, cutn, seen, monkeypatch):
    clip, counts = decoder.clip[0], []
    real = clip.encode_image
    monkeypatch.setattr(clip, "encode_image", lambda pixels: counts.append(len(pixels)) or real(pixels))
    results(decoder, job(), steps=2, clip_guidance=True, text="a star", guidance=guidance, cutn=cutn)
    assert counts == [seen, seen]


def test_weights_are_used(decoder):
    red, blue, both = (
        results(decoder, job(), steps=8, clip_guidance=True, text=text, cutn=2)[0]
        for text in ("a red circle:1|a blue star:0", "a red circle:0|a blue star:3", "a red circle:2|a blue star:1")
    )
    (alone,) = results(decoder, job(), steps=8, clip_guidance=True, text="a red circle", cutn=2)
    assert pixels(red) == pixels(alone)
    assert len({pixels(red), pixels(blue), pixels(both)}) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:1|b:2", [("a", 1), ("b", 2)]),
        ("a red circle", [("a red circle", 1)]),
        ("a clock: noon", [("a clock: noon", 1)]),
        ("a :-0.5 | | b", [("a", -0.5), ("b", 1)]),
        ("http://host/a.png", [("http://host/a.png", 1)]),
        ("https://host/a.png:3|b.png:2", [("https://host/a.png", 3), ("b.png", 2)]),
        ("a:nan|2:inf", [("a:nan", 1), ("2:inf", 1)]),
        (None, []),
    ],
)
def test_prompts_and_weights_are_told_apart(text, expected):
    assert split_prompts(text) == expected


def test_an_image_prompt_steers_too(decoder, tmp_path):
    results(decoder, job(9))[0].picture.save(tmp_path / "wanted.png")
    given = {"steps": 8, "clip_guidance": True, "cutn": 2}
    (steered,) = results(decoder, job(), image_prompts=f"{tmp_path / 'wanted.png'}:2", **given)
    assert pixels(steered) != pixels(results(decoder, job(), steps=8)[0])


def test_weights_that_sum_to_zero_are_refused(decoder):
    with pytest.raises(DiffusionError, match="sum to zero"):
        results(decoder, job(), clip_guidance=True, text="a red circle:1|a blue star:-1")


@pytest.mark.parametrize("side", [20, 34, 64])
def test_the_picture_is_enlarged_to_any_multiple(decoder, side):
    (found,) = results(decoder, job(), upsample=side, tile=24)
    assert found.picture.image.size == (side, side)


def test_an_upsampler_alone_enlarges_pictures(folder):
    alone = load_decoder(folder / "upsampler", device="cpu")
    picture = Job(name="a.png", picture=torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    (found,) = results(alone, picture, output_size=32)
    assert found.picture.image.size == (32, 32)


def test_an_upsampler_that_is_named_is_loaded(folder):
    named = load_decoder(folder, upsampler=folder / "upsampler", device="cpu")
    assert results(named, job(), upsample=32)[0].picture.image.size == (32, 32)


def test_memory_is_measured():
    def run() -> torch.Tensor:
        first = torch.zeros(1000, 1000)
        second = first + 1
        del first
        return second * 2 + second

    assert 8e6 <= peak_bytes(run, torch.device("cpu")) <= 13e6


def test_too_little_memory_says_how_much_one_picture_takes(decoder):
    with pytest.raises(
        ConfigError, match=r"one picture of 16 pixels takes [\d.e-]+ GB, measured, and --max_memory leaves"
    ):
        results(decoder, job(), max_memory=1e-5)
    assert results(decoder, job(), max_memory=1.0)


def test_batches_fit_the_memory(decoder):
    decoding = Decoding(decoder, DecodeRequest(max_memory=1.0, batch_size=8), [job()])
    stage = decoding.stages[0]
    taken = stage.needs(decoding._condition(stage, [job()], None, 16), 16)
    assert 0 < taken < 50e6
    more = stage.needs(decoding._condition(stage, [job(side=8)], None, 32), 32)
    assert more > taken


def test_tiles_shrink_to_fit_the_memory(decoder):
    held = sum(t.nbytes for network in decoder.networks for t in network.state_dict().values())
    decoding = Decoding(decoder, DecodeRequest(upsample=64), [job()])
    stage, low_res = decoding.stages[1], torch.zeros(1, 3, 16, 16)
    taken = stage.needs(low_res, 64)
    tight = DecodeRequest(upsample=64, max_memory=(held + 0.6 * taken) / 1e9)
    tiled = Decoding(decoder, tight, [job()])
    assert len([event for event in tiled.events() if isinstance(event, Result)]) == 1
    assert tiled.stages[1].needs(low_res, 64) <= 0.6 * taken


def test_the_recipe_makes_the_picture_again(decoder):
    (found,) = results(decoder, job(2, index=3), seed=4, steps=5, sampler="dpmpp_2m_sde", guidance_scale=2.0)
    recipe = found.picture.recipe
    assert recipe["settings"] == {"guidance_scale": 2.0, "sampler": "dpmpp_2m_sde", "timesteps": 5}
    assert (recipe["input"], recipe["index"], recipe["seed"], recipe["size"]) == ("2.npy", 3, 4, [16, 16])
    assert set(recipe["weights"]) == {"decoder", "codec", "upsampler"}


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"steps": 0}, ConfigError, "steps is 0"),
        ({"steps": 1001}, ConfigError, "steps is 1001; the chain has 1000"),
        ({"steps": 5, "timestep_respacing": "5"}, ConfigError, "leave one out"),
        ({"timestep_respacing": "often"}, DiffusionError, "respacing 'often' is not understood"),
        ({"clip_guidance": True}, ConfigError, "name them with text or image_prompts"),
        ({"clip_guidance": True, "image_prompts": "absent.png"}, ImageError, "absent.png cannot be read: No such file"),
        ({"output_size": 32}, ConfigError, "4x4 codes, which make 16 pixels a side; output_size is 32"),
        ({"upsample": 33}, ConfigError, "upsample is 33; the upsampler draws multiples of 2"),
        ({"label": 3}, ConfigError, "label is 3, and nothing here is conditioned on classes; leave it out"),
        ({"guidance_scale": float("nan")}, ConfigError, "guidance_scale is nan"),
        ({"max_memory": 0.0}, ConfigError, "max_memory is 0.0"),
        ({"cutn": 0}, ConfigError, "cutn is 0"),
        ({"seed": -1}, ConfigError, "seed is -1"),
    ],
)
def test_a_mistake_is_an_error_before_the_first_step(decoder, request_, error, message):
    with pytest.raises(error, match=message):
        Decoding(decoder, DecodeRequest(**request_), [job()])


def test_an_odd_number_of_codes_a_side_is_refused(decoder):
    with pytest.raises(
        CodesError, match=r"0\.npy: 5x5 codes would make 20 pixels a side, and the decoder draws multiples of 8"
    ):
        Decoding(decoder, DecodeRequest(), [job(side=5)])


def test_parts_that_do_not_belong_together_are_refused(folder, tmp_path):
    save_checkpoint(tiny.decoder(emb_input_dims=16), tmp_path / "decoder")
    with pytest.raises(CheckpointError, match=r"do not belong together.*16 channels, not 8.*--vae_path"):
        load_decoder(tmp_path / "decoder", vae=folder / "codec", device="cpu")
    save_checkpoint(dataclasses.replace(tiny.decoder(), codec=tiny.codec()), tmp_path / "whole")
    assert load_decoder(tmp_path / "whole", device="cpu")
    save_checkpoint(tiny.codec(seed=1), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"do not belong together.*sha256"):
        load_decoder(tmp_path / "whole", vae=tmp_path / "other", device="cpu")


def test_bfloat16_is_near_float32(folder, decoder):
    half = load_decoder(folder, device="cpu", dtype="bfloat16")
    a, b = (np.asarray(results(one, job())[0].picture.image).astype(float) for one in (decoder, half))
    assert 0 < np.abs(a - b).mean() < 8


def test_clip_steers_in_bfloat16_too(folder, decoder):
    half = load_decoder(folder, device="cpu", dtype="bfloat16")
    steered = {"clip_guidance": True, "text": "a blue star", "cutn": 4}
    before, after = (results(half, job(), steps=25, **more)[0] for more in ({}, steered))
    assert score(decoder, after, "a blue star") > score(decoder, before, "a blue star")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("settings", [{}, {"clip_guidance": True, "text": "a star", "cutn": 2}, {"upsample": 32}])
def test_a_gpu_draws_nearly_the_pictures_of_the_cpu(folder, decoder, dtype, settings):
    on_gpu = load_decoder(folder, device="cuda", dtype=dtype, enlarges=True)
    (found,) = results(on_gpu, job(), steps=4, **settings)
    (expected,) = results(decoder, job(), steps=4, **settings)
    a, b = (np.asarray(one.picture.image).astype(float) for one in (found, expected))
    assert np.abs(a - b).mean() < (0.5 if dtype == "float32" else 8)


@pytest.mark.gpu
def test_a_gpu_draws_batches_that_fit_its_memory(folder):
    on_gpu = load_decoder(folder, device="cuda")
    jobs = [job(seed) for seed in range(5)]
    alone, together = (results(on_gpu, *jobs, steps=4, batch_size=size, max_memory=1.0) for size in (1, 4))
    for a, b in zip(alone, together, strict=True):
        difference = np.asarray(a.picture.image).astype(float) - np.asarray(b.picture.image)
        assert np.abs(difference).max() <= 2
