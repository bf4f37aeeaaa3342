"""Codes a DALLE finds likelier, among those that say about the same of a picture.

Where two entries of a codebook would do about equally well, which one is nearest is chance, and a DALLE that has to
predict it learns chance by heart. Weighing how well a code fits against what it costs to tell is rate-distortion
optimization (of video coders: Sullivan and Wiegand, "Rate-distortion optimization for video compression", 1998), and
adding a prior to an encoder's scores is what the lower bound of a discrete VAE asks for (arXiv:2102.12092, section 2).

Shapes: B batch, L caption tokens, H W picture in pixels, h w grid of codes, M = h * w, V entries of the codebook.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from dalle3.models.dalle import Dalle
from dalle3.runtime import fast_bfloat16

PRIOR_WEIGHT = 0.5  # of single objects of picto: 1.29 instead of 1.48 nats a code, for 0.06 dB


class Scorer(Protocol):
    """An image tokenizer whose encoder gives each entry a probability."""

    def scores(self, images: Tensor) -> Tensor:
        """Logits (B, V, h, w), float32, of pictures (B, 3, H, W) in [0, 1]."""
        ...


class LikelierCodes(nn.Module):
    """Encodes like an image tokenizer, with a DALLE's say: log p(code | picture) + weight * log p(code | those before).

    The codes before are those that the image tokenizer alone would choose, so one pass of the DALLE does for all of
    them; it reads no caption.
    """

    def __init__(self, codec: Scorer, dalle: Dalle, *, weight: float) -> None:
        super().__init__()
        self.codec, self.dalle, self.weight = codec, dalle, weight

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Codes (B, h, w), int64, of pictures (B, 3, H, W) in [0, 1]; the grid is the DALLE's."""
        fits = self.codec.scores(images)
        codes = fits.argmax(dim=1)
        expected = self._expected(codes).mT.unflatten(-1, codes.shape[1:])
        return (fits.log_softmax(dim=1) + self.weight * expected).argmax(dim=1)

    def _expected(self, codes: Tensor) -> Tensor:
        """Log-probabilities (B, M, V) of each code after those before it, without a caption."""
        dalle, config = self.dalle, self.dalle.config
        no_caption = torch.zeros(len(codes), config.text_seq_len, dtype=torch.long, device=codes.device)
        with torch.autocast(codes.device.type, torch.bfloat16, enabled=fast_bfloat16(codes.device)):
            hidden = dalle.hidden(dalle.embed(no_caption, codes))[:, config.text_seq_len :]
            logits = dalle.image_logits(hidden)
        return logits.float().log_softmax(dim=-1)
