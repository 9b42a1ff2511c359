"""Cascade importance: what tokens were paid over all layers so far, while more and more of them are dropped.

Wang et al., "SpAtten: Efficient Sparse Attention Architecture with Cascade Token and Head Pruning", HPCA 2021,
arXiv:2012.09852.
"""

import math

import torch
from torch import Tensor


def accumulated(before: tuple[Tensor, Tensor] | None, rows: Tensor, paid: Tensor) -> tuple[Tensor, Tensor]:
    """The living tokens and their importance, (n,) each, after another layer paid them ``paid`` (n,).

    before: the tokens that lived until now, ascending, and their importance; None at the first layer.
    rows:   (n,) int64, those that live now, ascending, all of them among the former.
    """
    if before is None:
        return rows, paid.float()
    lived, importance = before
    return rows, importance[torch.searchsorted(lived, rows)] + paid


def first_pruned(depth: int, untouched: float) -> int:
    """The first layer that may see fewer tokens: those before it are the share ``untouched`` of all, rounded up."""
    return max(1, math.ceil(untouched * depth - 1e-9))


def ratio_at(layer: int, first: int, last: int, end: float) -> float:
    """The fraction of the original tokens that ``layer`` sees: on a line from 1 to ``end`` at ``last``.

    Layers before ``first`` see all.
    """
    if layer < first:
        return 1.0
    return 1 - (1 - end) * (layer - first + 1) / (last - first + 1)


def demo_slots(score: Tensor, start: int, recent: int, important: int, coming: int) -> Tensor:
    """(K,) int64, ascending: the cache slots of one head that the authors' released demo keeps between two turns.

    score:     (T,) of each slot: pre-softmax logits of the last forward, summed over its queries.
    start:     how many of the first stay. recent: how many of the last, less the ``coming`` tokens of the next turn,
               down to none. important: how many of those between, the best by score.
    """
    stop = min(len(score), len(score) - recent + coming)
    best = score[start:stop].sort(descending=True, stable=True).indices[:important].sort().values + start
    ends = torch.arange(start, device=score.device), torch.arange(stop, len(score), device=score.device)
    return torch.cat([ends[0], best, ends[1]])
