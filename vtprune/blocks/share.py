"""Shares: what a budget allots to parts of a sample, such as frames and crops, and how answers for parts are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtprune.blocks.resize import plan_matrix
from vtprune.tokens import Selection, VisualTokens
from vtprune_kernels.merge import merge_tokens


@dataclass(frozen=True)
class Share:
    """Tokens that have a budget of their own.

    rows: (n,) int64 rows of ``VisualTokens.hidden``, ascending, on the CPU; shares have none in common.
    k:    how many of them are kept, 0 to n.
    """

    rows: Tensor
    k: int


def split_rows(parts: Sequence[Tensor], kept: Tensor) -> list[Share]:
    """Each of ``parts``, (n,) rows, with as many as of it are among ``kept``."""
    return [Share(some.cpu(), int(torch.isin(some, kept).sum())) for some in parts]


def side_by_side(tokens: VisualTokens, parts: Sequence[tuple[Tensor, Selection]]) -> Selection:
    """The answer for a sample, from answers for parts of it; rows of no part are kept.

    parts: (rows (n,) of ``tokens.hidden``, the answer for these rows as a sample of their own).
    """
    n, device = len(tokens), tokens.hidden.device
    rest = torch.ones(n, dtype=torch.bool, device=device)
    for rows, _ in parts:
        rest[rows] = False
    alone = rest.nonzero().flatten()
    parts = [*parts, (alone, Selection(torch.arange(len(alone), device=device)))]
    keep, order = torch.cat([rows[found.keep] for rows, found in parts]).sort()
    note = "; ".join(dict.fromkeys(found.note for _, found in parts if found.note))
    if not any(found.changes for _, found in parts):
        return Selection(keep, note=note)
    if any(found.values is not None for _, found in parts):
        made = torch.cat([_vectors(tokens.hidden[rows], found) for rows, found in parts])
        return Selection(keep, values=made[order], note=note)
    place = order.argsort().split([len(found.keep) for _, found in parts])
    if any(found.merge is not None and found.merge.is_sparse for _, found in parts):
        entries = [_entries(rows, found, slots) for (rows, found), slots in zip(parts, place, strict=True)]
        out, source, weight = (torch.cat(some) for some in zip(*entries, strict=True))
        return Selection(keep, plan_matrix(out, source, weight, (len(keep), n)), note=note)
    merge, weight = torch.full((n,), -1, device=device), torch.ones(n, device=device)
    for (rows, found), slots in zip(parts, place, strict=True):
        if found.merge is None:
            merge[rows[found.keep]] = slots
        else:
            merge[rows] = torch.where(found.merge < 0, -1, slots[found.merge.clamp(min=0)])
        if found.weight is not None:
            weight[rows] = found.weight.to(weight)
    weighted = any(found.weight is not None for _, found in parts)
    return Selection(keep, merge, weight if weighted else None, note=note)


def _vectors(x: Tensor, found: Selection) -> Tensor:
    """(K, D) what the kept rows of a part become. x: (n, D)."""
    if found.values is not None:
        return found.values.to(x)
    if found.merge is None:
        return x[found.keep]
    if found.merge.is_sparse:
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.sparse.mm(found.merge.to(wide), x.to(wide)).to(x.dtype)
    return merge_tokens(x, found.merge, found.weight, len(found.keep))


def _entries(rows: Tensor, found: Selection, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(out, source, weight) of a merge matrix over the whole sample. slots: (K,) where a part's kept rows stand."""
    if found.merge is None:
        return slots, rows[found.keep], torch.ones(len(slots), device=rows.device)
    if found.merge.is_sparse:
        plan = found.merge.coalesce()
        return slots[plan.indices()[0]], rows[plan.indices()[1]], plan.values().float()
    stays = found.merge >= 0
    into, source = found.merge[stays], rows[stays]
    weight = torch.ones(len(into), device=rows.device) if found.weight is None else found.weight[stays].float()
    total = torch.zeros(len(slots), device=rows.device).index_add_(0, into, weight)
    return slots[into], source, weight / total[into]
