"""Clusters around density peaks: the best peaks are centres, and every row joins the nearest."""

from typing import Literal

import torch
from torch import Tensor

from vtprune.blocks.density_peaks import distances, peak_scores


@torch.no_grad()
def peak_clusters(
    x: Tensor, k: int, neighbours: int, ties: Literal["lowest", "highest"] = "lowest"
) -> tuple[Tensor, Tensor]:
    """The ``k`` centres (k,) int64 among rows (M, C), best peak first, and which of them each row joins, (M,) int64.

    neighbours: how many distances make a density. With one or two of them the densest row ties with another, always.
    ties:       which of equal peaks comes first. A row that is equally near to two centres joins the better peak, and
                a centre belongs to itself. No row, no centre.
    """
    if not len(x) or k < 1:
        return x.new_zeros(0, dtype=torch.int64), x.new_full((len(x),), -1, dtype=torch.int64)
    distance = distances(x)
    score = peak_scores(distance, neighbours)
    if ties == "highest":
        centres = len(x) - 1 - score.flip(0).sort(descending=True, stable=True).indices[:k]
    else:
        centres = score.sort(descending=True, stable=True).indices[:k]
    owner = distance[:, centres].argmin(1)
    owner[centres] = torch.arange(len(centres), device=x.device)
    return centres, owner
