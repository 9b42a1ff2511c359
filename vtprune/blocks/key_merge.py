"""Merging by the keys of the vision tower: tokens that were not chosen join those whose keys are like their own."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.blocks.assign import nearest
from vtprune.policies.base import top_rows

BLOCK = 1024  # rows that are compared to all others at a time


class Zip(NamedTuple):
    """Rows of an image: those that stay, and those that others join.

    dominant: (K1,) ascending. anchors: (K2,) ascending. rest: (R,) the others, ascending. to: (R,) int64 in [0, K2):
    the anchor that each of the others joins; (0,) where there are no anchors.
    """

    dominant: Tensor
    anchors: Tensor
    rest: Tensor
    to: Tensor

    @property
    def rows(self) -> Tensor:
        """(K1 + K2,) the dominant rows, then the anchors."""
        return torch.cat([self.dominant, self.anchors])

    def anchored(self, x: Tensor, how: Literal["add", "mean"]) -> Tensor:
        """(K2, C) what the anchors become, in the dtype of ``x`` (N, C), computed in float32 at least.

        "add": the anchor plus the mean of those that join it. "mean": the mean of all of them, the anchor included.
        """
        if not len(self.anchors):
            return x[:0]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        total = torch.zeros_like(wide[self.anchors]).index_add_(0, self.to, wide[self.rest])
        size = torch.bincount(self.to, minlength=len(self.anchors))[:, None]
        if how == "add":
            return (wide[self.anchors] + total / size.clamp(min=1)).to(x.dtype)
        return ((wide[self.anchors] + total) / (size + 1)).to(x.dtype)


@torch.no_grad()
def zip_rows(score: Tensor, key: Tensor, dominant: int, contextual: int) -> Zip:
    """The rows of largest score stay; evenly spaced others are anchors, which all that are left join by cosine of keys.

    score: (N,). key: (N, d). Ties go to the lowest index. Fewer anchors where fewer rows are left.
    Raises ValueError for counts below 0, above N, or for keys of another number.
    """
    if len(key) != len(score) or min(dominant, contextual) < 0 or dominant > len(score):
        raise ValueError(
            f"{len(score)} scores and {len(key)} keys cannot give {dominant} dominant and {contextual} contextual rows"
        )
    top = top_rows(score, dominant)
    free = torch.ones(len(score), dtype=torch.bool, device=score.device)
    free[top] = False
    rest = free.nonzero().flatten()
    if not contextual or not len(rest):
        return Zip(top, rest[:0], rest, rest[:0])
    anchors = rest[:: max(1, len(rest) // contextual)][:contextual]
    free[anchors] = False
    rest = free.nonzero().flatten()
    return Zip(top, anchors, rest, nearest(key[rest], key[anchors], "cosine"))


@torch.no_grad()
def neighbours(key: Tensor, centres: Tensor, n: int) -> Tensor:
    """(T, n) int64: of every centre the ``n`` other rows with the likest keys by cosine, the lowest first on a tie.

    key: (N, d), compared in its dtype. centres: (T,) rows of it. n: capped at N - 1.
    """
    unit = F.normalize(key, dim=-1, eps=torch.finfo(key.dtype).tiny)
    n, found = min(n, len(key) - 1), []
    for rows in centres.split(BLOCK):
        cosine = unit[rows] @ unit.T
        cosine[torch.arange(len(rows), device=key.device), rows] = -torch.inf
        found.append(cosine.sort(dim=1, descending=True, stable=True).indices[:, :n])
    return torch.cat(found)


class Sums(NamedTuple):
    """What the rows of an image become: entry m adds ``weight[m]`` times row ``source[m]`` to sum ``out[m]``.

    slots: (K,) the row that each sum takes the place of. out: (nnz,) int64 in [0, K). source: (nnz,) rows.
    weight: (nnz,) float32 > 0.
    """

    slots: Tensor
    out: Tensor
    source: Tensor
    weight: Tensor


def neighbour_sums(weight: Tensor, key: Tensor, centres: Tensor, n: int, rest_too: bool) -> Sums:
    """Each centre plus its ``n`` neighbours by their weights, in the order given; then the rest by its weights.

    weight: (N,) >= 0. key: (N, d). centres: (T,) rows. n: as of ``neighbours``. rest_too: whether all rows that are no
    centres make one sum more, which takes the place of the last of them; there must be one then.
    """
    near, weight = neighbours(key, centres, n), weight.float().clamp(min=torch.finfo(torch.float32).tiny)
    free = torch.ones(len(key), dtype=torch.bool, device=key.device)
    free[centres] = False
    rest = free.nonzero().flatten()[: None if rest_too else 0]
    each = torch.arange(len(centres), device=key.device)
    out = torch.cat([each, each.repeat_interleave(near.shape[1]), torch.full_like(rest, len(centres))])
    source = torch.cat([centres, near.flatten(), rest])
    factor = torch.cat([torch.ones_like(weight[centres]), weight[near.flatten()], weight[rest]])
    return Sums(torch.cat([centres, rest[-1:]]), out, source, factor)
