"""CLIP guidance against DALL-3's sample.py: cutouts, losses, the gradient through the UNet, and a guided loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.guidance import (
    Cutouts,
    PromptLoss,
    exact_gradient,
    range_excess,
    spherical_distance,
    total_variation,
)
from diffusion.process import Process, ProcessConfig
from diffusion.samplers import ddpm
from tests.diffusion.helpers import golden, relative_error
from tests.parity.test_diffusion_unet import rebuild

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
# The fixture's note: the reference's own float32 gradient is 1e-4 from its float64 one. The loop runs away, to 4e12.
TOLERANCE = 1e-5
LOOP_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def fixture():
    return golden("f_clip_guided_step")


@pytest.fixture(scope="module")
def process():
    return Process(ProcessConfig(rescale_timesteps=True), "10")


@pytest.fixture(scope="module")
def denoise(fixture, process):
    network, _ = rebuild("jack_emb")
    embeddings = fixture["inputs"]["image_embeds"]
    return process.denoiser(lambda x, timesteps: network(x, timesteps, embeddings=embeddings))


def make_loss(fixture, process, seed: int) -> tuple[PromptLoss, torch.Generator]:
    rng, flags = torch.Generator().manual_seed(seed), fixture["hparams"]
    state = fixture["clip_state_dict"]
    loss = PromptLoss(
        process=process,
        cutouts=Cutouts(cutn=flags["cutn"], cut_size=flags["clip"]["image_resolution"], rngs=[rng]),
        embed_image=lambda pixels: embed_image(state, (pixels - MEAN) / STD),
        targets=fixture["inputs"]["target_embed"],
        weights=torch.ones(1),
        clip_guidance_scale=flags["clip_guidance_scale"],
        tv_scale=flags["tv_scale"],
        range_scale=flags["range_scale"],
    )
    return loss, rng


def embed_image(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """CLIP's vision transformer, in a few lines: this package must not know the real one."""

    def weights(name: str) -> list[Tensor]:
        return [state[f"visual.{name}.weight"], state[f"visual.{name}.bias"]]

    width = state["visual.class_embedding"].shape[0]
    patches = F.conv2d(pixels, state["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], dim=1) + state["visual.positional_embedding"]
    x = F.layer_norm(x, (width,), *weights("ln_pre"))
    for block in ("transformer.resblocks.0", "transformer.resblocks.1"):
        h = F.layer_norm(x, (width,), *weights(f"{block}.ln_1"))
        projected = F.linear(
            h, state[f"visual.{block}.attn.in_proj_weight"], state[f"visual.{block}.attn.in_proj_bias"]
        )
        qkv = projected.unflatten(2, (3, width // 64, 64)).permute(2, 0, 3, 1, 4)
        x = x + F.linear(
            F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2), *weights(f"{block}.attn.out_proj")
        )
        h = F.linear(F.layer_norm(x, (width,), *weights(f"{block}.ln_2")), *weights(f"{block}.mlp.c_fc"))
        x = x + F.linear(h * torch.sigmoid(1.702 * h), *weights(f"{block}.mlp.c_proj"))
    return F.layer_norm(x[:, 0], (width,), *weights("ln_post")) @ state["visual.proj"]


def test_distances_and_penalties_agree(fixture):
    inputs, outputs = fixture["inputs"], fixture["outputs"]
    found = spherical_distance(inputs["x_small"], inputs["y_small"])
    assert relative_error(found, outputs["spherical_dist_loss_example"]) < 1e-5


def test_the_same_seed_draws_the_same_cutouts(fixture):
    cutouts = Cutouts(cutn=4, cut_size=32, rngs=[torch.Generator().manual_seed(70)])
    boxes = cutouts.draw(cutouts.rngs[0], 64, 64)
    assert [list(box) for box in boxes] == fixture["outputs"]["cutouts_seed70_size_x_y"].tolist()


@pytest.mark.parametrize("t", [8, 1])
def test_losses_at_one_step_agree(fixture, process, denoise, t):
    loss, _ = make_loss(fixture, process, 70)
    x, expected = fixture["inputs"]["x"], fixture["outputs"][f"losses_t{t}"]
    x0 = denoise(x, t).x0
    share = (1 - process.alphas_cumprod[t].item()) ** 0.5
    blend = x0 * share + x * (1 - share)
    assert relative_error(loss.distances(blend), expected["clip_losses"]) < TOLERANCE
    assert relative_error(total_variation(blend), expected["tv"]) < TOLERANCE
    assert relative_error(range_excess(x0), expected["range"]) < TOLERANCE
    again, _ = make_loss(fixture, process, 70)
    assert relative_error(again(x0, x, t).sum(), expected["loss"]) < TOLERANCE


@pytest.mark.parametrize("t", [8, 1])
def test_the_gradient_through_the_unet_agrees(fixture, process, denoise, t):
    loss, _ = make_loss(fixture, process, 70)
    found = exact_gradient(denoise, loss)(fixture["inputs"]["x"], t).gradient
    assert relative_error(found, fixture["outputs"][f"grad_t{t}"]) < TOLERANCE


def test_a_guided_loop_of_ten_steps_agrees(fixture, process, denoise):
    loss, rng = make_loss(fixture, process, 71)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=rng)

    first = torch.randn(2, 3, 64, 64, generator=rng)
    *_, last = ddpm(exact_gradient(denoise, loss), first, process=process, noise=noise)
    assert relative_error(last.x, fixture["outputs"]["guided_loop_seed71"]) < LOOP_TOLERANCE
    assert relative_error(last.x0, fixture["outputs"]["guided_loop_seed71_pred_xstart"]) < LOOP_TOLERANCE
