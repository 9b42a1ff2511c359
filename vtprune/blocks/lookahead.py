"""Importance of a prompt's tokens by what look-ahead queries pay to them, and the choice of whole chunks by it.

Liu, Chen and Zhang, "Speculative Prefill: Turbocharging TTFT with Lightweight and Training-Free Token Importance
Estimation", ICML 2025, arXiv:2502.02789.
"""

import math

import torch.nn.functional as F
from torch import Tensor


def pooled(rows: Tensor, kernel: int | None) -> Tensor:
    """(..., N) means over ``kernel`` neighbours, an odd number, zeros beyond the ends counted; None leaves them."""
    if kernel is None or kernel == 1:
        return rows
    return F.avg_pool1d(rows.reshape(-1, 1, rows.shape[-1]), kernel, 1, kernel // 2).view(rows.shape)


def step_importance(rows: Tensor, kernel: int | None) -> Tensor:
    """(..., N) the most that any head pays around each token. rows: (..., H, N) of one query, in at least float32."""
    return pooled(rows, kernel).amax(-2)


def chunk_means(importance: Tensor, size: int) -> Tensor:
    """(ceil(n / size),) mean importance of runs of ``size`` tokens; the last one may be shorter. importance: (n,)."""
    rest = -len(importance) % size
    sums = F.pad(importance, (0, rest)).view(-1, size).sum(1)
    if size == 1:
        return sums
    sums[:-1] /= size
    sums[-1] /= size - rest
    return sums


def chunk_count(n: int, size: int, keep_ratio: float) -> int:
    """How many of the chunks of ``n`` tokens are kept: ``keep_ratio`` of them, rounded up."""
    # a product that is meant to be whole may end up a rounding error above it
    return max(1, math.ceil(math.ceil(n / size) * keep_ratio - 1e-9))


def tokens_of_chunks(means: Tensor, size: int, k: int, n: int) -> int:
    """How many of ``n`` tokens the k chunks of largest mean have; on a tie the first wins."""
    best = means.sort(descending=True, stable=True).indices[:k]
    return k * size - (len(means) * size - n if bool((best == len(means) - 1).any()) else 0)
