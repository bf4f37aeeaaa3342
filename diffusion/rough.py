"""What can be said of a picture before the network is asked, where a rough version of it is known.

Shapes: B pictures, C channels, H W pixels.
"""

from __future__ import annotations

from torch import Tensor


def v_around(x: Tensor, rough: Tensor, *, alphas_cumprod: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """The v (B, C, H, W) of pictures scattered around rough ones, and the scale (B, 1, 1, 1) of what is left to learn.

    Were pictures N(rough, spread^2), the first would be the best prediction there is. A network that adds to it its
    output times the second need not learn to copy the rough picture, and its outputs have variance 1 at all noises: the
    preconditioning of EDM (arXiv:2206.00364, section 5) with a mean that is known.

    Args:
        x: (B, C, H, W), noisy.
        rough: (B, C, H, W), clean, in -1..1.
        alphas_cumprod: (B, 1, 1, 1), of the step x is at.
        spread: (B, 1, 1, 1), standard deviation of pictures from rough ones.
    """
    alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
    power = alphas_cumprod * spread**2 + 1 - alphas_cumprod  # of x around alpha * rough
    v = sigma * (alpha * (1 - spread**2) / power * (x - alpha * rough) - rough)
    return v, spread / power.sqrt()
