"""Which entries of a cache stay: those that do not compete, and of those that do the best ones."""

import torch
from torch import Tensor


def between(n: int, first: int, last: int, device: torch.device | None = None) -> Tensor:
    """(n,) bool: True for all but the ``first`` entries and the ``last`` ones."""
    inside = torch.zeros(n, dtype=torch.bool, device=device)
    inside[first : max(first, n - last)] = True
    return inside


def keep_best(score: Tensor, count: int, candidates: Tensor | None = None) -> Tensor:
    """The ``count`` candidates of largest score and everything that is no candidate, ascending; lower index on a tie.

    score:      (..., N), higher is kept; each leading place chooses for itself.
    candidates: (N,) bool, who competes; None: all.
    Returns (..., K) int64, K = count + how many are no candidates.
    Raises ValueError for a count below 0 or above the number of candidates.
    """
    n = score.shape[-1]
    if candidates is None:
        candidates = torch.ones(n, dtype=torch.bool, device=score.device)
    competing = candidates.nonzero().flatten()
    if not 0 <= count <= len(competing):
        raise ValueError(f"count is 0 to {len(competing)}, the number of candidates; got {count!r}")
    order = score[..., competing].sort(dim=-1, descending=True, stable=True).indices[..., :count]
    others = (~candidates).nonzero().flatten().expand(*score.shape[:-1], -1)
    return torch.cat([competing[order], others], -1).sort(-1).values
