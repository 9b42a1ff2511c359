"""Growing a set from pivots: each in turn takes the tokens that are least like it of those that are left."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def grow(features: Tensor, pivots: Tensor, taken: Tensor, shares: Sequence[int]) -> Tensor:
    """(K,) int64 rows that the pivots take, in the order of taking; a pivot takes fewer where fewer are left.

    features: (N, D) candidates. pivots: (P, D), in the order in which they take. taken: (N,) bool, no candidates.
    shares:   how many each pivot takes. Cosines are float32; ties go to the lowest row.
    Source: DART, EMNLP 2025.
    """
    x, p = (t.float() / t.float().norm(dim=-1, keepdim=True).clamp(min=1e-8) for t in (features, pivots))
    cosine, left, rows = p @ x.T, (~taken).nonzero()[:, 0], []
    for likeness, share in zip(cosine, shares, strict=True):
        order = likeness[left].sort(stable=True).indices
        rows.append(left[order[:share]])
        left = left[order[share:].sort().values]
    return torch.cat(rows) if rows else left[:0]


def even_shares(total: int, n: int) -> list[int]:
    """``total`` over ``n``, as evenly as integers allow; the first get the larger ones."""
    return [total // n + (i < total % n) for i in range(n)]


def visiting_order(columns: Iterable[int]) -> list[int]:
    """Different columns of a prompt in the order in which a CPython set of them is iterated: by hash, not by value."""
    return list({int(column) for column in columns})
