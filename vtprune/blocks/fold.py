"""Folding: tokens that go leave what they show to the tokens most like them that stay."""

import torch
from torch import Tensor

from vtprune.blocks.assign import Sums, means, nearest


def folded(rows: Tensor, x: Tensor, keep: Tensor, halving: bool) -> Sums:
    """Every token that is not kept goes into the kept one of largest cosine.

    rows: (n,) of the sample. x: (n, D). keep: (k,) of these n. halving: one after the other, each with weight 1/2;
    otherwise all of a token's have the same weight.
    """
    k, device = len(keep), rows.device
    gone = torch.ones(len(rows), dtype=torch.bool, device=device).index_fill(0, keep, False).nonzero().flatten()
    owner = nearest(x[gone], x[keep], "cosine")
    members, owners = torch.cat([keep, gone]), torch.cat([torch.arange(k, device=device), owner])
    if not halving:
        return means(rows[keep], rows[members], owners)
    size, order = torch.bincount(owner, minlength=k), owner.argsort(stable=True)
    rank = torch.empty_like(owner)
    rank[order] = torch.arange(len(owner), device=device) - (size.cumsum(0) - size)[owner[order]]
    halvings = torch.cat([size, size[owner] - rank])
    return Sums(rows[keep][owners], rows[members], 0.5 ** halvings.float())
