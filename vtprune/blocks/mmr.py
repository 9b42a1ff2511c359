"""Greedy maximal marginal relevance: picks tokens that are important and unlike those picked before, one by one."""

import torch
from torch import Tensor

from vtprune_kernels.greedy_rules import MMR
from vtprune_kernels.greedy_select import greedy_select


@torch.no_grad()
def mmr(features: Tensor, importance: Tensor, k: int, trade_off: float = 0.5, parallel_k: int = 1) -> Tensor:
    """The ``k`` tokens of greedy maximal marginal relevance, (k,) int64 in the order they are picked.

    The most important token is picked first, then always the one with the largest
    ``trade_off * importance - (1 - trade_off) * (largest cosine to a pick)``; ties go to the lowest index. Importance
    is scaled to 0..1 in its own dtype, all else is float32. No (N, N) matrix is made of more than 1024 tokens.

    features:   (N, D) float; only their directions count.
    importance: (N,), higher is better.
    k:          1 to N.
    trade_off:  lambda, from 0 (unlike each other) to 1 (importance alone).
    parallel_k: how many are picked at a time, before similarities to them count.
    Raises ValueError for shapes, counts or a trade_off out of range, and for nan or infinity.
    Source: Carbonell and Goldstein, SIGIR 1998, as IDPruner has it, arXiv:2602.13315.
    """
    if features.dim() != 2 or importance.shape != features.shape[:1]:
        raise ValueError(
            f"features are (N, D) and importance is (N,); got {tuple(features.shape)} and {tuple(importance.shape)}"
        )
    if not 1 <= k <= len(features):
        raise ValueError(f"k is the number of tokens picked, 1 to {len(features)} of {len(features)}; got {k!r}")
    features = features.detach()
    rule = MMR(_min_max(importance.detach().to(features.device)), trade_off, parallel_k)
    if not features.is_cpu:
        _check_finite(features, rule.importance)
    return greedy_select(features, k, rule)


def _min_max(importance: Tensor) -> Tensor:
    """(N,) float32 in 0..1, subtracted and divided in the dtype of ``importance``."""
    if not importance.is_floating_point():
        importance = importance.float()
    low = importance.min()
    return ((importance - low) / (importance.max() - low + 1e-6)).float()


def _check_finite(features: Tensor, importance: Tensor) -> None:
    """On a CPU ``greedy_select`` looks; elsewhere the host waits here, once."""
    if not bool(torch.isfinite(importance + features.float().norm(dim=-1)).all()):
        raise ValueError("features and importance must be finite numbers; got nan or infinity among them")
