"""Assigning rows to centres, and what the rows of a cluster become: its mean, or its anchor blended with the others."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.blocks.resize import plan_matrix

BLOCK = 1024  # rows that are compared to all centres at a time


class Sums(NamedTuple):
    """Weighted sums of rows, entry by entry: the vector at row ``place`` is the sum of ``weight`` times row ``source``.

    place, source: (nnz,) int64 rows of ``VisualTokens.hidden``. weight: (nnz,) float32; those of a place sum to 1.
    """

    place: Tensor
    source: Tensor
    weight: Tensor


@torch.no_grad()
def nearest(x: Tensor, centres: Tensor, metric: Literal["cosine", "euclid"]) -> Tensor:
    """(M,) int64: the centre nearest to each row, by the largest cosine or the smallest distance; the lowest on a tie.

    x: (M, C). centres: (K, C), K >= 1. Compared in float32; a row of zeros has cosine 0 to everything. Of centres that
    are equal the first takes all: whoever wants a centre to belong to itself says so afterwards.
    Raises ValueError for other shapes, no centre, or another metric.
    """
    if x.dim() != 2 or centres.dim() != 2 or x.shape[1] != centres.shape[1] or not len(centres):
        raise ValueError(
            f"x is (M, C) and centres (K, C) with one centre or more; got {tuple(x.shape)} and {tuple(centres.shape)}"
        )
    if metric not in ("cosine", "euclid"):
        raise ValueError(f"metric is 'cosine' or 'euclid'; got {metric!r}")
    x, centres = x.detach().float(), centres.detach().float()
    if metric == "cosine":
        unit = F.normalize(centres, dim=1)
        return torch.cat([(F.normalize(rows, dim=1) @ unit.T).argmax(1) for rows in x.split(BLOCK)])
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cat([torch.cdist(rows, centres, compute_mode=mode).argmin(1) for rows in x.split(BLOCK)])


def kept(rows: Tensor) -> Sums:
    """Rows (K,) that stay as they are."""
    return Sums(rows, rows, torch.ones(len(rows), device=rows.device))


def means(centre: Tensor, rows: Tensor, owner: Tensor) -> Sums:
    """The plain mean of each cluster, at its centre.

    centre: (K,) rows where the means stand. rows: (M,) the members, centres included. owner: (M,) in [0, K).
    """
    size = torch.bincount(owner, minlength=len(centre)).clamp(min=1)
    return Sums(centre[owner], rows, 1 / size[owner].float())


def blends(anchor: Tensor, rows: Tensor, owner: Tensor, beta: float) -> Sums:
    """``w * anchor + (1 - w) * mean of its rows``, w = max(1 / (number of rows + 1), beta), at each anchor.

    anchor: (K,) rows. rows: (M,) what was assigned; anchors may be among it, or not. owner: (M,) in [0, K).
    beta:   the least weight of an anchor, in [0, 1]; an anchor without rows stays as it is.
    """
    size = torch.bincount(owner, minlength=len(anchor)).float()
    weight = (1 / (size + 1)).clamp(min=beta).masked_fill(size == 0, 1)
    rest = ((1 - weight) / size.clamp(min=1))[owner]
    return Sums(torch.cat([anchor, anchor[owner]]), torch.cat([anchor, rows]), torch.cat([weight, rest]))


def merge_matrix(parts: Sequence[Sums], n: int) -> tuple[Tensor, Tensor]:
    """What a ``Selection`` takes: keep (K,), ascending, and merge, a sparse (K, n) matrix.

    parts: no two of them have a place in common. n: visual tokens of the sample.
    """
    place, source, weight = (torch.cat(some) for some in zip(*parts, strict=True))
    keep, out = place.unique(return_inverse=True)
    return keep, plan_matrix(out, source, weight, (len(keep), n))
