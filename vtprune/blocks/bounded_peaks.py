"""Clusters of bounded size: dense tokens open one unless another is near, and every token joins the nearest."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1024  # tokens that are compared to all others at a time
WHOLE = 10240  # up to so many tokens their distances are kept in a matrix, 400 MiB at most
_HALVINGS = 16  # of the range of cutoffs, which is then less than 0.0001 wide


class Bounded:
    """Tokens among which clusters are opened. Distances are 1 - cosine, 0 or more, in float32.

    keys: (n, C) floating point, n >= 1. width: a neighbour at distance d adds ``exp(-(d / width)^2)`` to a density.
    Source: Dhouib et al., "PACT", CVPR 2025, arXiv:2504.08966 (distance bounded density peak clustering).
    """

    @torch.no_grad()
    def __init__(self, keys: Tensor, width: float = 2.0):
        self.unit = F.normalize(keys.detach().float(), dim=1)
        n, device = len(keys), keys.device
        self.matrix = np.empty((n, n), np.float32) if n <= WHOLE else None
        density = []
        for rows in torch.arange(n, device=device).split(BLOCK):
            far = _far(self.unit, rows)
            if self.matrix is not None:
                # visited one by one, which a device far away would be slow at
                self.matrix[int(rows[0]) : int(rows[0]) + len(rows)] = far.cpu().numpy()
            density.append(far.div_(width).square_().neg_().exp_().sum(1))
        self.order = torch.cat(density).sort(descending=True, stable=True).indices.cpu()

    @torch.no_grad()
    def centres(self, cutoff: float, most: int | None = None) -> Tensor:
        """Tokens that open a cluster: by falling density those that no earlier centre is within ``cutoff`` of.

        most: no more are opened. Returns (K,) int64, in the order they are opened; of equally dense ones the lowest.
        """
        most = len(self.order) if most is None else most
        if self.matrix is not None:
            found = _opened(self.matrix, self.order.tolist(), cutoff, most)
            return torch.tensor(found, dtype=torch.int64, device=self.unit.device)
        found = self.order[:0].to(self.unit.device)
        for rows in self.order.to(found.device).split(BLOCK):
            if len(found) == most:
                break
            for some in found.split(BLOCK):
                rows = rows[(1 - self.unit[rows] @ self.unit[some].T > cutoff).all(1)]
            among = _far(self.unit[rows], torch.arange(len(rows), device=rows.device)).cpu().numpy()
            found = torch.cat([found, rows[_opened(among, range(len(rows)), cutoff, most - len(found))]])
        return found

    def exactly(self, k: int) -> tuple[Tensor, float]:
        """The first ``k`` centres (k,), and the widest cutoff found that opens so many; below 0 where none does."""
        low, high = -1.0, 2.0
        if k < len(self.unit):
            for _ in range(_HALVINGS):
                cutoff = (low + high) / 2
                low, high = (cutoff, high) if len(self.centres(cutoff, k)) == k else (low, cutoff)
        return self.centres(low, k), low


def _far(unit: Tensor, rows: Tensor) -> Tensor:
    """(R, n) distances of some rows to all; a row of zeros is at distance 0 of itself too."""
    far = (1 - unit[rows] @ unit.T).clamp_(min=0)
    far[torch.arange(len(rows), device=rows.device), rows] = 0
    return far


def _opened(far: np.ndarray, order: Sequence[int], cutoff: float, most: int) -> list[int]:
    """The rows of ``far`` (n, n) that open a cluster, visited in this order; not more than ``most``."""
    free, beyond, found = np.ones(len(far), bool), np.empty(len(far), bool), []
    # compared as what distances are
    cutoff = np.float32(cutoff)
    for row in order:
        if len(found) == most:
            break
        if free[row]:
            found.append(row)
            np.logical_and(free, np.greater(far[row], cutoff, out=beyond), out=free)
    return found


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
