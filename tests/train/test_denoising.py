"""Training the diffusion decoder and the upsampler."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from dalle3.checkpoint import build, read_folder
from dalle3.data.loader import Batch
from dalle3.data.transforms import to_tensor
from dalle3.errors import ConfigError
from dalle3.runtime import generator
from dalle3.train.loop import LoopConfig
from dalle3.train.optim import OptimConfig
from dalle3.train.tasks.diffusion import DiffusionTaskConfig
from diffusion.losses import training_losses
from diffusion.process import Process, ProcessConfig
from tests.train.conftest import fit
from tests.train.denoisers import PROCESS, diffusion_task, upsampler_task

LOOP = LoopConfig(steps=2, batch_size=2, log_every_n_steps=1, sample_every_n_steps=0)


def batch(number: int = 2) -> Batch:
    pixels = torch.randint(256, (number, 3, 8, 8), generator=generator(0, "pixels"), dtype=torch.uint8)
    return Batch(content=pixels, captions=("",) * number)


def test_the_objective_is_the_loss_of_the_process_on_the_embedded_codes():
    task = diffusion_task(DiffusionTaskConfig(emb_dropout=0.0))
    inputs = task.prepare(batch(), step=0, rng=generator(0, "prepare"))
    task.objective.eval()
    loss, metrics = task.objective(**inputs)
    embeddings = task.codec.embed(inputs["condition"]["codes"])
    assert embeddings.shape == (2, 8, 2, 2)
    terms = training_losses(
        Process(PROCESS),
        lambda x, t: task.model(x, t, embeddings=embeddings),
        x0=inputs["x0"],
        t=inputs["t"],
        noise=inputs["noise"],
    )
    torch.testing.assert_close(loss, terms["loss"].mean())
    assert metrics.keys() == {"mse", "vb", "psnr"}


def test_steps_at_an_even_angle_are_of_little_noise_where_much_is_known():
    config = DiffusionTaskConfig(schedule_sampler="angle")
    process = ProcessConfig(noise_schedule="cosine", prediction="v", variance="fixed_small")
    rough = diffusion_task(config, process=process, learn_sigma=False, low_res=True, spread=0.1)
    blank = diffusion_task(config, process=process, learn_sigma=False)
    shares = [task.objective.timesteps.shares()[:200].sum() for task in (rough, blank)]
    assert shares[0] > 0.7 > 0.4 > shares[1]


def test_steps_that_sampling_does_not_visit_are_left_out():
    task = diffusion_task(DiffusionTaskConfig(schedule_sampler="visited"))
    assert set(task.model.settings.chain().timestep_map) == set(
        task.objective.timesteps.shares().nonzero().flatten().tolist()
    )
    assert len(task.model.settings.chain().timestep_map) < task.objective.timesteps.num_timesteps


def test_withheld_codes_change_nothing():
    task = diffusion_task()
    inputs = task.prepare(batch(), step=0, rng=generator(0, "prepare"))
    for parameter in task.model.parameters():  # the last layer starts as zero
        torch.nn.init.normal_(parameter, std=0.2, generator=generator(0, "weights"))
    task.objective.eval()
    withheld = {**inputs["condition"], "withheld": torch.tensor([True, True])}
    other = {**withheld, "embeddings": torch.randn(2, 8, 2, 2)}
    with_codes = {**other, "withheld": torch.tensor([False, True])}
    losses = [task.objective(**{**inputs, "condition": condition})[0] for condition in (withheld, other, with_codes)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_codes_are_withheld_as_often_as_asked():
    task = diffusion_task(DiffusionTaskConfig(emb_dropout=0.25))
    condition = task.prepare(batch(400), step=0, rng=generator(0, "prepare"))["condition"]
    assert abs(float(condition["withheld"].float().mean()) - 0.25) < 0.05
    assert not task.condition(torch.rand(400, 3, 8, 8), rng=None)["withheld"].any()


def test_a_decoder_that_sees_a_picture_is_shown_what_its_codes_make():
    task = diffusion_task(low_res=True)
    inputs = task.prepare(batch(), step=0, rng=generator(0, "prepare"))
    condition = inputs["condition"]
    torch.testing.assert_close(condition["low_res"], task.baseline(condition) * 2 - 1)
    assert condition["low_res"].shape == (2, 3, 8, 8)
    for parameter in task.model.parameters():  # the last layer starts as zero
        torch.nn.init.normal_(parameter, std=0.2, generator=generator(0, "weights"))
    task.objective.eval()
    hidden = {**condition, "withheld": torch.tensor([True, True])}
    conditions = (hidden, {**hidden, "low_res": condition["low_res"] + 1}, condition)
    losses = [task.objective(**{**inputs, "condition": one})[0] for one in conditions]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_with_a_spread_an_untrained_decoder_expects_the_picture_of_the_codes():
    process = Process(
        ProcessConfig(diffusion_steps=30, noise_schedule="cosine", prediction="v", rescale_timesteps=True)
    )
    task = diffusion_task(process=process.config, low_res=True, spread=0.1)
    condition = task.condition(torch.rand(2, 3, 8, 8, generator=generator(0, "pixels")), rng=None)
    x = torch.randn(2, 3, 8, 8, generator=generator(0, "noise"))
    expected = process.denoiser(task.objective.bind(condition))(x, 29).x0
    assert (expected - condition["low_res"]).abs().max() < 0.01
    nothing = process.denoiser(task.objective.bind({**condition, "withheld": torch.tensor([True, True])}))(x, 15).x0
    torch.testing.assert_close(nothing, process.alphas_cumprod[15].float().sqrt() * x)


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_with_a_spread_the_loss_is_of_what_the_network_itself_puts_out(loss):
    process = Process(ProcessConfig(diffusion_steps=30, noise_schedule="cosine", prediction="v", loss=loss))
    task = diffusion_task(DiffusionTaskConfig(emb_dropout=0.0), process=process.config, low_res=True, spread=0.1)
    inputs = task.prepare(batch(), step=0, rng=generator(0, "prepare"))
    rough = inputs["condition"]["low_res"]
    inputs["x0"] = rough + 0.1 * torch.randn(rough.shape, generator=generator(0, "scatter"))
    losses = [
        task.objective(**{**inputs, "t": torch.full_like(inputs["t"], t), "noise": inputs["noise"]})[1][loss]
        for t in (0, 10, 29)
    ]
    assert all(0.5 < one < 1.5 for one in losses)


def test_a_part_is_the_same_place_of_picture_codes_and_conditions():
    task = diffusion_task(DiffusionTaskConfig(crop=8), image_size=16, low_res=True)
    images = torch.rand(5, 3, 16, 16, generator=generator(0, "pixels"))
    condition = task.condition(images, rng=None)
    part, cut = task.part(images, condition, rng=generator(0, "part"))
    assert part.shape == (5, 3, 8, 8)
    assert {name: told.shape[-1] for name, told in cut.items()} == {
        "embeddings": 2,
        "low_res": 8,
        "codes": 2,
        "withheld": 5,
    }
    corners = set()
    for number in range(5):
        places = [
            (top, left)
            for top in range(3)
            for left in range(3)
            if torch.equal(images[number, :, 4 * top : 4 * top + 8, 4 * left : 4 * left + 8], part[number])
        ]
        ((top, left),) = places
        corners.add((top, left))
        for name, unit in (("embeddings", 1), ("codes", 1), ("low_res", 4)):
            rows, columns = (slice(unit * start, unit * (start + 2)) for start in (top, left))
            assert torch.equal(cut[name][number], condition[name][number][..., rows, columns])
    assert len(corners) > 1


def test_a_decoder_of_whole_pictures_trains_on_parts():
    task = diffusion_task(DiffusionTaskConfig(crop=8), image_size=16, low_res=True)
    pixels = torch.randint(256, (2, 3, 16, 16), generator=generator(0, "pixels"), dtype=torch.uint8)
    whole = Batch(content=pixels, captions=("", ""))
    assert task.prepare(whole, step=0, rng=generator(0, "prepare"))["x0"].shape == (2, 3, 8, 8)
    assert task.preview(whole, rng=generator(0, "preview")).images[0].size == (16, 16)


def test_the_upsampler_sees_the_mean_of_each_block_of_pixels():
    task = upsampler_task()
    inputs = task.prepare(batch(1), step=0, rng=generator(0, "prepare"))
    expected = inputs["x0"][0, :, :4, 4:].mean(dim=(1, 2))
    torch.testing.assert_close(inputs["condition"]["low_res"][0, :, 0, 1], expected)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_a_perfect_network_has_a_high_psnr(prediction):
    process = Process(ProcessConfig(diffusion_steps=30, noise_schedule="cosine", prediction=prediction))
    task = diffusion_task(process=process.config)
    inputs = task.prepare(batch(), step=0, rng=generator(0, "prepare"))
    x0, noise, t = inputs["x0"], inputs["noise"], inputs["t"]
    answer = {"epsilon": noise, "x0": x0, "v": process.v_from_x0(x0, t, noise)}[prediction]
    task.objective.bind = lambda condition: lambda x, timesteps: torch.cat([answer, torch.zeros_like(answer)], dim=1)
    _, metrics = task.objective(**inputs)
    assert metrics["mse"] == 0
    assert metrics["psnr"] > 60


@pytest.mark.parametrize("kind", [diffusion_task, upsampler_task])
def test_the_loss_falls_and_the_checkpoint_is_the_model(kind, tmp_path):
    optim = OptimConfig(learning_rate=5e-3, clip_grad_norm=1.0)
    steps = LoopConfig(steps=30, batch_size=8, log_every_n_steps=1, sample_every_n_steps=30)
    task = kind()
    checkpoint = fit(task, tmp_path, loop=steps, optim=optim).checkpoint
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["mse"] for row in rows if "mse" in row]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert "preview_psnr" in rows[-1]
    assert (tmp_path / "samples" / "step-00000030.png").is_file()
    found = read_folder(checkpoint)
    model = build(found, device=torch.device("cpu"))
    assert found.kind == ("unet" if kind is diffusion_task else "super_res_unet")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), task.model.parameters(), strict=True))


def test_the_decoders_folder_holds_its_image_tokenizer(tmp_path):
    task = diffusion_task()
    found = read_folder(fit(task, tmp_path, loop=LOOP, optim=OptimConfig()).checkpoint)
    assert found.codec_info["grid"] == 2
    assert torch.equal(found.codec.state["codebook.weight"], task.codec.codebook.weight)


def test_the_history_of_losses_survives_a_resumed_run(tmp_path):
    saved = fit(diffusion_task(), tmp_path, loop=LOOP, optim=OptimConfig()).checkpoint
    history = load_file(saved / "train" / "beside.safetensors")
    assert history.keys() == {"timesteps.losses", "timesteps.counts"}
    assert int(history["timesteps.counts"].sum()) == 4
    task = diffusion_task()
    fit(task, tmp_path, resume="auto", loop=LOOP, optim=OptimConfig())
    assert torch.equal(task.objective.timesteps.losses, history["timesteps.losses"])


def test_previews_show_held_out_pictures():
    task = diffusion_task()
    task.held_out = batch(3).content.flip(0)
    preview = task.preview(batch(2), rng=generator(0, "preview"))
    assert (len(preview.images), preview.columns) == (9, 3)
    assert torch.equal(to_tensor(preview.images[-1]), task.held_out[-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"emb_input_dims": 16}, "emb_input_dims is 16, but codes of this image tokenizer become 8 channels"),
        ({"channel_mult": (1.0,)}, "1 levels make 0 pixels of a code, but the image tokenizer reads 2"),
        ({"channel_mult": (1.0, 1.0)}, "2 levels make 1 pixels of a code, but the image tokenizer reads 2"),
        ({"null_embedding": False}, "emb_dropout is 0.1, which needs null_embedding"),
        ({"learn_sigma": False}, "learn_sigma is False and variance is learned_range"),
        ({"image_size": 12}, "image_size is 12; 4 levels need a multiple of 8"),
        ({"config": DiffusionTaskConfig(crop=12)}, "crop is 12; it must be a multiple of 8"),
        ({"config": DiffusionTaskConfig(crop=16)}, "at most image_size, 8"),
    ],
)
def test_a_decoder_that_cannot_be_trained_on_the_codes_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        diffusion_task(**changes)
