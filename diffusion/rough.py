"""What can be said of a picture before the network is asked, where a rough version of it is known.

Shapes: B pictures, C channels, H W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Around(NamedTuple):
    """What is known of noisy pictures whose clean ones are N(rough, spread^2).

    A network that sees `seen` and adds `scale` times its output to `v` need not learn to copy the rough picture, nor to
    amplify what little noise is left: both have variance 1 at all noises.

    Attributes:
        seen: (B, C, H, W), how x differs from the noisy rough picture, in deviations.
        v: (B, C, H, W), the best prediction of v there is.
        scale: (B, 1, 1, 1), how far the true v is from it, as a deviation.
    """

    seen: Tensor
    v: Tensor
    scale: Tensor


def around(x: Tensor, rough: Tensor, *, alphas_cumprod: Tensor, spread: Tensor) -> Around:
    """What is known of x: the preconditioning of EDM (arXiv:2206.00364, section 5) with a mean that is known.

    Args:
        x: (B, C, H, W), noisy.
        rough: (B, C, H, W), clean, in -1..1.
        alphas_cumprod: (B, 1, 1, 1), of the step x is at.
        spread: (B, 1, 1, 1), standard deviation of pictures from rough ones.
    """
    alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
    power = alphas_cumprod * spread**2 + 1 - alphas_cumprod  # of x around alpha * rough
    moved = x - alpha * rough
    v = sigma * (alpha * (1 - spread**2) / power * moved - rough)
    return Around(moved / power.sqrt(), v, spread / power.sqrt())
