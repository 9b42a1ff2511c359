"""Bipartite matching: every even row looks for its nearest odd row, and the closest pairs become one."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtprune.blocks.grouping import Groups
from vtprune_kernels.merge import merge_tokens

BLOCK = 1 << 24
"""Similarities that are held at a time."""


@dataclass(frozen=True)
class Pairing:
    """One round. stay, gone: (s,) and (r,) even rows, most similar first. target: (r,) the odd row of each ``gone``."""

    stay: Tensor
    gone: Tensor
    target: Tensor


def pair_up(metric: Tensor, r: int, *, first_stays: bool = False) -> Pairing:
    """Merges the ``r`` even rows that are most like an odd row into it, by cosine in float32; all of them if r is more.

    metric:      (n, d). first_stays: row 0, a class token, is never merged; the evens that stay are ascending then.
    Ties go to the lowest row. Rows of zeros are like nothing.
    """
    u = F.normalize(metric.float(), dim=-1)
    even, odd = u[0::2], u[1::2]
    r = max(0, min(r, (len(u) - first_stays) // 2))
    if not len(odd):
        none = torch.arange(0, device=u.device)
        return Pairing(torch.arange(len(even), device=u.device) * 2, none, none)
    found = [(some @ odd.T).max(-1) for some in even.split(max(1, BLOCK // len(odd)))]
    best, to = (torch.cat([getattr(part, name) for part in found]) for name in ("values", "indices"))
    if first_stays:
        best[0] = -torch.inf
    order = best.sort(descending=True, stable=True).indices
    gone, stay = order[:r], order[r:]
    return Pairing(2 * (stay.sort().values if first_stays else stay), 2 * gone, 2 * to[gone] + 1)


def merge_pairs(x: Tensor, k: int, *, weighted: bool = True, by_similarity: bool = False) -> Groups:
    """Rounds of ``pair_up`` until ``k`` rows are left; each round merges at most half of the rows.

    x:             (n, D), also what is compared, in float32.
    k:             1 to n.
    weighted:      a merged row counts in later rounds for as many rows as it stands for; otherwise each round takes the
                   plain mean of what it merges.
    by_similarity: the evens that stayed come first, most similar first, then the odds, and so they are paired in the
                   next round; otherwise rows keep their order. A merged row stands where its odd row stood.
    """
    x, device = x.float(), x.device
    anchor, group = (torch.arange(len(x), device=device) for _ in range(2))
    size, share = torch.ones(len(x), device=device), torch.ones(len(x), device=device)
    while len(x) > k:
        pairing = pair_up(x, min(len(x) // 2, len(x) - k))
        order = torch.cat([pairing.stay, torch.arange(1, len(x), 2, device=device)])
        order = order if by_similarity else order.sort().values
        to = torch.empty(len(x), dtype=torch.int64, device=device)
        to[order] = torch.arange(len(order), device=device)
        to[pairing.gone] = to[pairing.target]
        x = merge_tokens(x, to, size if weighted else None, len(order))
        if not weighted:
            share = share / torch.bincount(to, minlength=len(order))[to[group]]
        size = size.new_zeros(len(order)).index_add_(0, to, size)
        anchor, group = anchor[order], to[group]
    return Groups(anchor, group, None if weighted else share)
