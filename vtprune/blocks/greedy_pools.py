"""Greedy selection pool by pool: every image or video, or all of a prompt together, is searched by itself."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vtprune.tokens import Selection, VisualTokens

Pick = Callable[[slice, int], Tensor]
"""A pool and a count -> (count,) int64 rows of the pool, counted from its first, in any order; fewer are allowed."""


def picked(tokens: VisualTokens, pools: Iterable[slice], count: Callable[[int], int], pick: Pick) -> Selection:
    """The picks of every pool, ascending. A pool of which everything is kept is not searched.

    pools: runs of rows of ``tokens.hidden`` that share a budget. count: how many of n tokens are kept.
    """
    keep = []
    for pool in pools:
        n = pool.stop - pool.start
        k = count(n)
        rows = pick(pool, k).sort().values if k < n else torch.arange(n, device=tokens.hidden.device)
        keep.append(pool.start + rows)
    return Selection(torch.cat(keep))
