"""Clusters of bounded size: dense tokens open one unless another is near, and every token joins the nearest."""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1024  # tokens that are compared to all others at a time
WHOLE = 4096  # up to so many tokens their distances are kept in a matrix
_HALVINGS = 16  # of the range of cutoffs, which is then less than 0.0001 wide


class Bounded:
    """Tokens among which clusters are opened. Distances are 1 - cosine, 0 or more, in float32.

    keys: (n, C) floating point, n >= 1. width: a neighbour at distance d adds ``exp(-(d / width)^2)`` to a density.
    Source: Dhouib et al., "PACT", CVPR 2025, arXiv:2504.08966 (distance bounded density peak clustering).
    """

    @torch.no_grad()
    def __init__(self, keys: Tensor, width: float = 2.0):
        self.device = keys.device
        unit = F.normalize(keys.detach().float(), dim=1)
        density = torch.cat([(-(self._far(unit, rows) / width).square()).exp().sum(1) for rows in _blocks(unit)])
        self.order = density.sort(descending=True, stable=True).indices
        # visited one by one, which a device far away would be slow at
        self.unit = unit[self.order].cpu()
        self.order = self.order.cpu()
        n = len(unit)
        self.matrix = self._far(self.unit, torch.arange(n)) if n <= WHOLE else None

    @staticmethod
    def _far(unit: Tensor, rows: Tensor) -> Tensor:
        """(R, n) distances of some rows to all; a row of zeros is at distance 0 of itself too."""
        far = (1 - unit[rows] @ unit.T).clamp(min=0)
        far[torch.arange(len(rows), device=rows.device), rows] = 0
        return far

    @torch.no_grad()
    def centres(self, cutoff: float, most: int | None = None) -> Tensor:
        """Tokens that open a cluster: by falling density those that no earlier centre is within ``cutoff`` of.

        most: no more are opened. Returns (K,) int64, in the order they are opened; of equally dense ones the lowest.
        """
        free, found = torch.ones(len(self.unit), dtype=torch.bool), []
        while len(found) != most and bool(free.any()):
            at = int(free.int().argmax())
            far = self._far(self.unit, torch.tensor([at]))[0] if self.matrix is None else self.matrix[at]
            found.append(at)
            free &= far > cutoff
            free[at] = False
        return self.order[found].to(self.device)

    def exactly(self, k: int) -> tuple[Tensor, float]:
        """The first ``k`` centres (k,), and the widest cutoff found that opens so many; below 0 where none does."""
        low, high = -1.0, 2.0
        if k < len(self.unit):
            for _ in range(_HALVINGS):
                cutoff = (low + high) / 2
                low, high = (cutoff, high) if len(self.centres(cutoff, k)) == k else (low, cutoff)
        return self.centres(low, k), low


def _blocks(unit: Tensor) -> tuple[Tensor, ...]:
    return torch.arange(len(unit), device=unit.device).split(BLOCK)


@torch.no_grad()
def nearest_centre(keys: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) int64 which of the centres (K, C) is nearest to each of the keys (n, C), the first on a tie, and how far.

    Distances (n,) are 1 - cosine, 0 or more, in float32.
    """
    unit, to = F.normalize(keys.detach().float(), dim=1), F.normalize(centres.detach().float(), dim=1)
    if not len(keys):
        return keys.new_zeros(0, dtype=torch.int64), unit.new_zeros(0)
    parts = [(1 - rows @ to.T).clamp(min=0).min(1) for rows in unit.split(BLOCK)]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])
