"""Makes image_tokenizers.pt: run it where taming-transformers, dalle-pytorch 1.6.6 and DALL-E are installed.

PYTHONPATH=. python tests/golden/make_image_tokenizers.py tests/golden/image_tokenizers.pt

Per case: the configuration, and what the reference answers with the weights and inputs of recipe.py. It holds what the
fixtures given with the project leave out: OpenAI's dVAE, and the gradients of training.
"""

import sys
from pathlib import Path

import attr
import torch
from dall_e import Decoder, Encoder
from dalle_pytorch import DiscreteVAE
from taming.models.vqgan import GumbelVQ, VQModel
from torch.nn.functional import interpolate, one_hot

from tests.golden.recipe import recipe_input, recipe_state

NO_LOSS = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}
NO_SCHEDULE = {"target": "torch.nn.Identity"}
TAMING = {
    "ch": 32,
    "ch_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [32, 8],
    "z_channels": 16,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "dropout": 0.0,
}
IMAGES = 0.5 + 0.5 * recipe_input("images", (2, 3, 32, 48))
PATCHES = interpolate(0.5 + 0.5 * recipe_input("patches", (2, 3, 8, 12)), scale_factor=4)
SQUARE = 0.5 + 0.5 * recipe_input("square", (2, 3, 32, 32))


def fill(model, gain=1.0):
    shapes = {name: value.shape for name, value in model.state_dict().items() if not name.startswith("loss.")}
    model.load_state_dict(recipe_state(shapes, gain=gain))
    return shapes


def gradient_norms(model):
    return {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}


def taming(model, config):
    """One training pass: the loss is the codebook term plus the reconstruction's product with a fixed tensor."""
    model.train()
    fill(model)
    torch.manual_seed(7)
    redrawn, codebook_loss = model(2 * IMAGES - 1)
    torch.manual_seed(7)
    codes = model.encode(2 * IMAGES - 1)[2][2].reshape(2, 8, 12)
    (codebook_loss + (redrawn * recipe_input("direction", redrawn.shape)).mean()).backward()
    outputs = {"redrawn": redrawn.detach(), "codebook_loss": codebook_loss.item(), "codes": codes}
    return {"config": config, **outputs, "gradient_norms": gradient_norms(model)}


def vqgan(**options):
    ddconfig = TAMING | options
    model = VQModel({"double_z": False} | ddconfig, NO_LOSS, n_embed=40, embed_dim=24)
    return taming(model, ddconfig | {"num_tokens": 40, "embed_dim": 24})


def gumbel_vq(*, straight_through):
    sizes = {"n_embed": 40, "embed_dim": 16, "kl_weight": 0.01}
    model = GumbelVQ({"double_z": False} | TAMING, NO_LOSS, temperature_scheduler_config=NO_SCHEDULE, **sizes)
    model.quantize.straight_through = straight_through
    model.quantize.temperature = 0.8
    torch.manual_seed(7)
    noise = -torch.empty(2, 40, 8, 12).exponential_().log()
    config = TAMING | {"num_tokens": 40, "embed_dim": 16, "kl_weight": 0.01, "straight_through": straight_through}
    return taming(model, config) | {"noise": noise, "temperature": 0.8}


def discrete_vae(**options):
    config = {"image_size": 32, "num_tokens": 30, "codebook_dim": 12, "num_layers": 2, "hidden_dim": 10, **options}
    model = DiscreteVAE(**config)
    fill(model)
    torch.manual_seed(7)
    loss, redrawn = model(SQUARE, return_loss=True, return_recons=True, temp=0.6)
    loss.backward()
    torch.manual_seed(7)
    noise = -torch.empty(2, 30, 8, 8).exponential_().log()
    outputs = {"loss": loss.item(), "redrawn": redrawn.detach(), "noise": noise, "temperature": 0.6}
    return {"config": config, **outputs, "gradient_norms": gradient_norms(model)}


@torch.no_grad()
def openai_dvae():
    attr.validators.set_disabled(True)  # the original refuses to be this small
    encoder = Encoder(n_hid=16, n_blk_per_group=2, vocab_size=48)
    decoder = Decoder(n_init=8, n_hid=16, n_blk_per_group=2, vocab_size=48)
    fill(encoder, gain=2)
    fill(decoder, gain=1.5)
    logits = encoder(0.8 * PATCHES + 0.1)
    codes = torch.arange(48).reshape(2, 4, 6)
    statistics = decoder(one_hot(codes, 48).permute(0, 3, 1, 2).float())
    pictures = ((statistics[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1)
    config = {"n_hid": 16, "n_init": 8, "n_blk_per_group": 2, "num_tokens": 48}
    return {"config": config, "logits": logits, "codes": codes, "statistics": statistics, "pictures": pictures}


torch.save(
    {
        "vqgan": vqgan(),
        "vqgan_without_conv": vqgan(resamp_with_conv=False),
        "gumbel_vq": gumbel_vq(straight_through=True),
        "gumbel_vq_soft": gumbel_vq(straight_through=False),
        "dvae_reinmax": discrete_vae(straight_through=True, reinmax=True, kl_div_loss_weight=0.01),
        "openai_dvae": openai_dvae(),
    },
    Path(sys.argv[1]),
)
