"""Groups of rows that become one row each: where each group stands, and how that is said in a selection."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtprune.blocks.resize import plan_matrix
from vtprune.tokens import Selection


@dataclass(frozen=True)
class Groups:
    """Which rows of a sample, or of a part of it, become one.

    anchor: (K,) int64: the row at whose place each group stands, one of its members, in the order of the method.
    group:  (N,) int64 in [0, K): the group of each row.
    weight: (N,) float > 0 of each row in the mean of its group; None weighs them equally.
    """

    anchor: Tensor
    group: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.anchor)

    def matrix(self) -> Tensor:
        """Sparse (K, N) float32 whose row j makes group j of all rows."""
        n = len(self.group)
        weight = torch.ones(n, device=self.group.device) if self.weight is None else self.weight.float()
        total = weight.new_zeros(len(self)).index_add_(0, self.group, weight)
        every = torch.arange(n, device=self.group.device)
        return plan_matrix(self.group, every, weight / total[self.group], (len(self), n))


def joined(parts: list[tuple[Tensor, Groups]], n: int, device: torch.device) -> Groups:
    """Groups of disjoint parts of n rows as one; rows of no part are groups of their own, after the others.

    parts: (rows of the part (m,) int64, its groups, counted in these rows), in order.
    """
    anchor, weight = [], None
    group = torch.full((n,), -1, device=device)
    if any(part.weight is not None for _, part in parts):
        weight = torch.ones(n, device=device)
    count = 0
    for rows, part in parts:
        rows = rows.to(device)
        group[rows] = part.group.to(device) + count
        anchor.append(rows[part.anchor.to(device)])
        count += len(part)
        if weight is not None and part.weight is not None:
            weight[rows] = part.weight.to(device, weight.dtype)
    alone = (group < 0).nonzero().flatten()
    group[alone] = count + torch.arange(len(alone), device=device)
    return Groups(torch.cat([*anchor, alone]), group, weight)


def group_selection(groups: Groups, *, in_place: bool = True, note: str = "") -> Selection:
    """The selection that merges ``groups``, which cover all rows.

    in_place: every group stands at its anchor; otherwise groups stand in their own order on the places of all anchors.
    """
    keep, order = groups.anchor.sort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    if len(groups) == len(groups.group) and torch.equal(keep, groups.anchor):
        return Selection(keep, note=note)
    if in_place:
        return Selection(keep, rank[groups.group], groups.weight, note=note)
    return Selection(keep, groups.matrix(), note=note)
