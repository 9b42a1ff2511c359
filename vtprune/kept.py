"""Which tokens of an image or a video a site kept, and which of them stand for the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtprune.layout import Row


@dataclass(frozen=True)
class Kept:
    """The tokens of one image or video that a site kept. All tensors are on the CPU; one made by hand may end at grids.

    rows:    (k,) int64 their rows among the sample's visual tokens, ascending.
    coords:  (k, 4) int64 their view, frame, row and column, -1 unknown.
    of:      how many tokens the source had. grids: its (T, H, W) views.
    into:    (of,) int64 for every token that the source had, in prompt order: which of the k stands for it after this
             site, itself or the one it was merged into, at this site or before. -1: none of them, it was dropped or
             merged into a token of another source. Where a merge is weighted, the kept token that gave it most weight.
    places:  (of, 4) int64, as ``coords``, of the same tokens.
    seconds: (T,) float64 when each step of the grid is shown; None where nobody said, nan for a step nobody knows.
    target:  (of,) int64, as ``into`` but the row among the sample's visual tokens, whatever the source; -1 was dropped.
    """

    kind: str
    source: int
    rows: Tensor
    coords: Tensor
    of: int
    grids: tuple[tuple[int, int, int], ...]
    into: Tensor | None = None
    places: Tensor | None = None
    seconds: Tensor | None = None
    target: Tensor | None = None


def stand_ins(keep: Tensor, merge: Tensor | None, n: int) -> Tensor:
    """(n,) int64: which of the kept rows stands for each of n rows after a selection, -1 for a row that was dropped.

    keep:  (K,) int64 on the CPU. merge: as in a ``Selection``, (n,) int64 or sparse (K, n), on any device.
    Of a matrix the row with the largest positive weight in a column stands for it, the lowest of equals; a kept row to
    which no row gives weight stands for itself.
    """
    if merge is not None and not merge.is_sparse:
        return merge.cpu()
    found = torch.full((n,), -1)
    found[keep] = torch.arange(len(keep))
    if merge is None:
        return found
    plan = merge.detach().cpu().double().coalesce()
    (row, column), weight = plan.indices(), plan.values()
    row, column, weight = (part[weight > 0] for part in (row, column, weight))
    most = weight.new_zeros(n).scatter_reduce(0, column, weight, "amax")
    best = weight == most[column]
    first = torch.full((n,), len(keep)).scatter_reduce(0, column[best], row[best], "amin")
    return torch.where(first < len(keep), first, found)


def targets(n: int, kept: Sequence[Tensor], merges: Sequence[Tensor | None]) -> Tensor:
    """(n,) int64: the row that stands for each of n rows after all sites, -1 for rows that were dropped.

    kept:   of each site the rows that live on, ascending, counted in the n. merges: of each site, over the rows that
            lived before it.
    """
    target = alive = torch.arange(n)
    for rows, merge in zip(kept, merges, strict=True):
        into = stand_ins(torch.searchsorted(alive, rows), merge, len(alive))
        # by row before any pruning; what is dropped points at the spare last entry
        step = torch.full((n + 1,), -1)
        step[alive] = torch.where(into >= 0, rows[into.clamp(min=0)], -1)
        target, alive = step[target], rows
    return target


def kept_of(row: Row, offered: Tensor, kept: Sequence[Tensor], merges: Sequence[Tensor | None]) -> list[Kept]:
    """What a sample's sites, one after the other, left of each of its images and videos.

    offered: (n,) which visual tokens of ``row`` policies may prune. kept, merges: of each site, as for ``targets``.
    """
    target, rows, found = targets(len(offered), kept, merges), kept[-1], []
    for ordinal, source in enumerate(row.sources):
        mine = row.source[offered] == ordinal
        stay = rows[mine[rows]]
        places, coords = row.coords[offered[mine]], row.coords[offered[stay]]
        more = {"into": _index_of(target[mine], stay), "target": target[mine], "seconds": source.seconds}
        found.append(Kept(source.kind, ordinal, stay, coords, len(places), source.grids, places=places, **more))
    return found


def _index_of(values: Tensor, among: Tensor) -> Tensor:
    """(n,) int64: where each value stands in the ascending ``among``, -1 where it does not."""
    if not len(among):
        return torch.full_like(values, -1)
    at = torch.searchsorted(among, values).clamp(max=len(among) - 1)
    return at.masked_fill(among[at] != values, -1)
