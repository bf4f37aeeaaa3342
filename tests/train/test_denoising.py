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
        ({"channel_mult": (1.0, 1.0)}, "2 levels make 1 pixels of a code, but the image tokenizer reads 2"),
        ({"null_embedding": False}, "emb_dropout is 0.1, which needs null_embedding"),
        ({"learn_sigma": False}, "learn_sigma is False and variance is learned_range"),
        ({"image_size": 12}, "image_size is 12; 4 levels need a multiple of 8"),
    ],
)
def test_a_decoder_that_cannot_be_trained_on_the_codes_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        diffusion_task(**changes)
