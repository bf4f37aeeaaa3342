"""Muon for the matrices inside a network, AdamW for everything else, as one optimizer.

From "Muon: an optimizer for hidden layers" (kellerjordan.github.io/posts/muon): embeddings, what reads logits out, and
whatever is no matrix belong to AdamW. Both follow one learning rate: Muon's updates are scaled to the size of AdamW's
("Muon is scalable for LLM training", arXiv:2502.16982, section 2.2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def hidden_matrices(objective: nn.Module) -> list[Tensor]:
    """The trained weights of the linear layers inside the models of an objective.

    Linear layers right below a model stand at its end: they read logits or shared features out.
    """
    last = {id(leaf) for model in objective.children() for leaf in model.children()}
    layers = (m for m in objective.modules() if isinstance(m, nn.Linear) and id(m) not in last)
    return list(dict.fromkeys(layer.weight for layer in layers if layer.weight.requires_grad))


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimizers that step together; their groups of parameters are its own."""

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer | None) -> None:
        self.parts = [muon] if adamw is None else [muon, adamw]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._join()

    def _join(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Changes the weights."""
        assert closure is None
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the states of both."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._join()
