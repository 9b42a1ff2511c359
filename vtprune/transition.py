"""How much attention and MLP of decoder layers change each token: the signal that TransPrune reads.

Li et al., "TransPrune: Token Transition Pruning for Efficient Large Vision-Language Model", CVPR 2026,
arXiv:2507.20630: magnitude times normalised direction. Watched by hooks on the two modules; nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vtprune.signals import Need

Part = tuple[Tensor, Tensor | None]
"""Variations (B, P) of the physical rows at a module, and the columns (B, P) that those held, None for all."""


def transition(x: Tensor, out: Tensor, real: Tensor, unsigned: bool = False) -> Tensor:
    """(B, P) how much a module changes each token, in the dtype of ``x``.

    x, out:   (B, P, D), what goes into the module, after its norm, and what comes out, before it is added.
    real:     (B, P) bool, False for padding, which takes no part in the normalisation.
    unsigned: direction by 1 - |cos| as the paper writes it, instead of 1 - cos as the authors' code has it.
    """
    cosine = nn.functional.cosine_similarity(x, out, dim=-1, eps=1e-8)
    turn = (1 - (cosine.abs() if unsigned else cosine)).exp()
    share = turn / turn.masked_fill(~real, 0).sum(1, keepdim=True)
    # a row of zeros is no token; where one appears it must not become nan
    return out.norm(dim=-1) / x.norm(dim=-1).clamp(min=torch.finfo(x.dtype).tiny) * share


class Transitions:
    """What was seen in one forward, by signal name, layer and module."""

    def __init__(self):
        self.parts: dict[tuple[str, int], dict[str, Part]] = {}

    def see(self, names: Sequence[str], layer: int, module: str, x: Tensor, out: Tensor, real: Tensor, columns):
        """Takes the variation at ``module`` ("attention" or "mlp") of a layer."""
        for name in names:
            value = transition(x, out, real, unsigned=name == "transition_unsigned")
            self.parts.setdefault((name, layer), {})[module] = (value, columns)

    def done(self, need: Need) -> list[int]:
        """Which of the layers that a need names have run."""
        return [layer for layer in need.where if len(self.parts.get((need.name, layer), ())) == 2]

    def rows(self, need: Need, b: int, logical: Tensor, device: torch.device) -> Tensor:
        """(layers that have run, N): attention's plus MLP's variation of sample ``b``'s tokens in the given columns."""
        found = []
        for layer in self.done(need):
            parts = self.parts[need.name, layer].values()
            found.append(sum(value[b, physical(c, b, logical.to(value.device))].to(device) for value, c in parts))
        return torch.stack(found)


def physical(columns: Tensor | None, b: int, logical: Tensor) -> Tensor:
    """Physical rows of sample ``b`` that hold the given logical columns; pads repeat a column on the left."""
    if columns is None:
        return logical
    return torch.searchsorted(columns[b].contiguous(), logical, right=True) - 1
