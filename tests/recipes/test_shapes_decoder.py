"""The recipe of the small diffusion decoder: its parts fit each other, and its figures are what they say."""

from __future__ import annotations

import pytest
import torch

from dalle3.assemble_decoder import load_decoder
from dalle3.models.decoder import DiffusionDecoder
from dalle3.models.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle3.rerank import load_clip
from dalle3.train.tasks.diffusion import DiffusionTask, DiffusionTaskConfig
from recipes.shapes.decoder import CODES, FEATURES, HELD_OUT, SIZE, SMALL, decoder_config, scenes
from recipes.shapes.decoder_quality import WAYS, Examples, decoded, file_name, measured, sheet
from tests import tiny
from tests.test_decode import write_stage_two


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_stage_two(tmp_path_factory.mktemp("models") / "tiny")


def test_the_decoder_fits_the_codes_of_its_image_tokenizer():
    vae = DiscreteVAE(DiscreteVAEConfig(image_size=SMALL, num_layers=1, num_tokens=CODES, codebook_dim=FEATURES))
    decoder = DiffusionDecoder(decoder_config(vae.embed_dim))
    task = DiffusionTask(decoder, vae, DiffusionTaskConfig())
    assert task.codes(torch.rand(1, 3, SIZE, SIZE)).shape == (
        1,
        decoder.settings.image_grid,
        decoder.settings.image_grid,
    )


def test_held_out_scenes_are_not_those_of_training():
    seen = {tuple(scene.objects) for scene in scenes(SIZE, number=200).scenes}
    assert not any(tuple(scene.objects) in seen for scene in scenes(SIZE, number=50, split=HELD_OUT).scenes)


def test_figures_are_of_each_picture(folder):
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.8
    examples = Examples(images=images, captions=["a red circle", "a star"], codes=torch.zeros(2, 4, 4).long())
    judge = load_clip(folder / "clip", device=torch.device("cpu"))
    found = measured(images + 0.1, examples, judge)
    torch.testing.assert_close(torch.tensor(found["psnr"]), torch.tensor([20.0, 20.0]), atol=1e-3, rtol=0)
    assert (
        found["clip_score"][1]
        == measured(
            images[1:] + 0.1, Examples(images=images[1:], captions=["a star"], codes=examples.codes[1:]), judge
        )["clip_score"][0]
    )
    assert sheet(examples, images, images).size == (2 * 34 - 2, 3 * 34 - 2)


def test_every_way_is_one_that_decode_takes(folder):
    decoder = load_decoder(folder, device="cpu")
    codes = torch.zeros(1, tiny.GRID, tiny.GRID).long()
    for way in WAYS.values():
        short = {**way, "steps": 2, **({"cutn": 2} if "clip_guidance" in way else {})}
        assert decoded(decoder, codes, text="a star", indices=[0], way=short).shape == (1, 3, 16, 16)
    assert file_name("dpm++ 2m, 20 steps") == "dpm-2m-20-steps"
