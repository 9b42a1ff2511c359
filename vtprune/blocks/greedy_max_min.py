"""Greedy max-min: picks tokens far from each other, each the one whose nearest pick is farthest."""

import torch
from torch import Tensor

from vtprune_kernels.greedy_rules import MaxMin
from vtprune_kernels.greedy_select import greedy_select


@torch.no_grad()
def max_min(features: Tensor, k: int, *, in_dtype: bool = False) -> Tensor:
    """The ``k`` rows of (N, D) features that are picked, (k,) int64 in order, 1 <= k <= N; ties: the lowest index.

    The first is the row whose nearest other is farthest by 1 - cosine, then always the one whose nearest pick is.
    Rows of zeros have no direction and are picked last. ``in_dtype`` computes distances in the dtype of the features,
    which rounds many of bfloat16 to one number, and makes an (N, N) matrix; otherwise they are float32.
    Raises ValueError for nan and infinity, on a CPU.
    Source: DivPrune, Alvar et al., CVPR 2025, arXiv:2503.02175.
    """
    somewhere = features.float().norm(dim=-1) != 0  # nan goes on, to be refused
    rows, empty = somewhere.nonzero()[:, 0], (~somewhere).nonzero()[:, 0]
    n = min(k, len(rows))
    if not n:
        return empty[:k]
    some = features[rows] if len(empty) else features
    order = max_min_of(distances(some), n) if in_dtype else greedy_select(some, n, MaxMin())
    return torch.cat([rows[order], empty[: k - n]])


def distances(features: Tensor) -> Tensor:
    """(N, N) 1 - cosine of each row of (N, D) features to each, in their dtype; nan for a row of zeros."""
    unit = features / features.norm(dim=-1, keepdim=True)
    return 1 - unit @ unit.T


def max_min_of(distance: Tensor, k: int, *, again: bool = False) -> Tensor:
    """(k,) int64 picks from an (N, N) matrix of distances. ``again``: picked rows stay candidates, as in a release."""
    if len(distance) == 1:
        return torch.zeros(1, dtype=torch.int64, device=distance.device)
    # the second smallest distance of a row is to its nearest other; the smallest to itself
    score, nearest, order = distance.topk(2, dim=0, largest=False).values[1], None, []
    for _ in range(k):
        candidates = score.float().cpu().numpy().copy()
        if not again:
            candidates[order] = -float("inf")
        order.append(int(candidates.argmax()))  # the first of equals, and nan before all numbers
        row = distance[order[-1]]
        score = nearest = row if nearest is None else torch.minimum(nearest, row)
    return torch.tensor(order, device=distance.device)
