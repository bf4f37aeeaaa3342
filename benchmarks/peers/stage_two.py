"""guided-diffusion's own UNet, plain and guided by OpenAI's CLIP. Runs in their environment, never in ours.

    python stage_two.py CASE FOLDER CHANNELS SIZE CUTN THREADS

CASE is "write" (random weights, an input and the output for it, to FOLDER) or a measurement; each prints one JSON line.
The guided step is made of what DALL-3's sample.py calls: `p_sample` with a `cond_fn` that runs the network again.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

STEPS, AT = "25", 12
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def make_unet(channels: int, size: int):
    from guided_diffusion.script_util import create_model

    torch.manual_seed(0)
    model = create_model(
        image_size=256,
        num_channels=channels,
        num_res_blocks=2,
        channel_mult="1,1,2,2,4,4",
        learn_sigma=True,
        attention_resolutions="32,16,8",
        num_head_channels=64,
        use_scale_shift_norm=True,
        resblock_updown=True,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model.eval().requires_grad_(False)


def make_clip():
    from clip.model import CLIP

    torch.manual_seed(1)
    return CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12).float().eval().requires_grad_(False)


def make_diffusion():
    from guided_diffusion.script_util import create_gaussian_diffusion

    return create_gaussian_diffusion(
        steps=1000, learn_sigma=True, noise_schedule="linear", timestep_respacing=STEPS, rescale_timesteps=True
    )


def start(size: int) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))


def best(run, times: int = 2) -> float:
    run()
    taken = []
    for _ in range(times):
        before = time.perf_counter()
        run()
        taken.append(time.perf_counter() - before)
    return min(taken)


def write(folder: Path, channels: int, size: int) -> dict:
    model = make_unet(channels, size)
    x, t = start(size), torch.tensor([500])
    with torch.no_grad():
        output = model(x, t)
    torch.save(model.state_dict(), folder / "unet.pt")
    torch.save({"x": x, "t": t, "output": output}, folder / "case.pt")
    torch.save(make_clip().state_dict(), folder / "clip.pt")
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def one_pass(channels: int, size: int) -> dict:
    model, x, t = make_unet(channels, size), start(size), torch.tensor([500])
    with torch.no_grad():
        return {"seconds": best(lambda: model(x, t))}


def guided(channels: int, size: int, cutn: int) -> dict:
    model, clip, diffusion = make_unet(channels, size), make_clip(), make_diffusion()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    target = torch.nn.functional.normalize(torch.randn(1, 512), dim=-1)

    def cond_fn(x, t):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = diffusion.p_mean_variance(model, x, torch.tensor([AT]), clip_denoised=False)
            share = float(diffusion.sqrt_one_minus_alphas_cumprod[AT])
            blend = out["pred_xstart"] * share + x * (1 - share)
            views = torch.nn.functional.adaptive_avg_pool2d(blend, 224).expand(cutn, -1, -1, -1)
            seen = torch.nn.functional.normalize(clip.encode_image(((views + 1) / 2 - mean) / std), dim=-1)
            loss = 1000 * (seen - target).norm(dim=-1).div(2).arcsin().pow(2).mul(2).mean()
            return -torch.autograd.grad(loss, x)[0]

    for name, parameter in model.named_parameters():  # as sample.py: its attention cannot be differentiated without
        parameter.requires_grad_(any(part in name for part in ("qkv", "norm", "proj")))
    x, t = start(size), torch.tensor([AT])
    with torch.no_grad():
        taken = best(
            lambda: diffusion.p_sample(model, x, t, clip_denoised=False, cond_fn=cond_fn, model_kwargs={}),
        )
    return {"seconds": taken}


def main() -> None:
    case, folder, *numbers = sys.argv[1:]
    channels, size, cutn, threads = map(int, numbers)
    torch.set_num_threads(threads)
    cases = {
        "write": lambda: write(Path(folder), channels, size),
        "pass": lambda: one_pass(channels, size),
        "guided": lambda: guided(channels, size, cutn),
    }
    print(json.dumps({**cases[case](), "torch": torch.__version__, "peer": version("guided-diffusion-sdk")}))


if __name__ == "__main__":
    main()
