"""Frame budgets: how many tokens each frame of a clip may have, by how much it matters."""

from collections.abc import Sequence

import torch
from torch import Tensor


def frame_weights(scores: Tensor, exponent: float = 2.0) -> Tensor:
    """(T,) float64 summing to 1: ``(100 * score) ** exponent`` over its sum; uniform if every score is 0.

    scores: (T,) finite and 0 or more. The 100 is the published scale; it cancels but for rounding.
    """
    raw = (100 * scores.double()) ** exponent
    total = raw.sum()
    if not (total > 0 and total.isfinite()):
        # powers that left the range of float64: the same shares, with the largest score as the unit
        top = scores.double().max()
        raw = (scores.double() / top) ** exponent if top > 0 else torch.ones_like(raw)
        total = raw.sum()
    return raw / total


def cap_weights(weights: Tensor, most: Tensor) -> Tensor:
    """(T,) float64: no weight above its ``most`` (T,), the excess handed on in one pass.

    The pass goes in order: a frame below its cap gets the share of the excess that it has of the clipped weights. What
    would lift it above its cap is added to the excess that later frames share. The excess is never used up by what was
    given, and what no frame could take is lost, so the sum may end below 1.
    """
    clipped = weights.minimum(most)
    excess, whole = float((weights - clipped).sum()), float(clipped.sum())
    out = clipped.tolist()
    for i, cap in enumerate(most.tolist()):
        if out[i] < cap:
            lifted = out[i] + out[i] / whole * excess
            excess += max(0.0, lifted - cap)
            out[i] = min(lifted, cap)
    return torch.tensor(out, dtype=torch.float64)


def frame_budgets(weights: Tensor, total: int, sizes: Sequence[int] | None = None) -> list[int]:
    """``int(total * weight)`` tokens for each frame of a clip.

    weights: (T,) float64 summing to 1. total: tokens of the clip, 1 or more.
    sizes:   the most that each frame can hold, which caps its weight (``cap_weights``); None does not cap.
    """
    if sizes is not None:
        weights = cap_weights(weights, torch.tensor(sizes, dtype=torch.float64) / total)
    budgets = [int(total * weight) for weight in weights.tolist()]
    return budgets if sizes is None else [min(n, size) for n, size in zip(budgets, sizes, strict=True)]


def even_budgets(sizes: Sequence[int], total: int) -> list[int]:
    """``total`` <= sum(sizes) tokens over frames of these sizes in proportion, exactly and without a remainder."""
    budgets, seen, whole = [], 0, sum(sizes)
    for size in sizes:
        budgets.append(total * (seen + size) // whole - total * seen // whole)
        seen += size
    return budgets


def ascending_rows(wanted: Tensor, n: int) -> Tensor:
    """(K,) int64: rows as near to ``wanted`` as a strictly ascending order inside [0, n) allows.

    wanted: (K,) int64, any order, 0 or more; K <= n. A row that is taken moves up to the next free one; where that
    would leave the range, the last rows of all are used.
    """
    if len(wanted) > n:
        raise ValueError(f"{len(wanted)} tokens do not fit on {n} rows; lower the budget")
    rank = torch.arange(len(wanted), device=wanted.device)
    gap = (wanted - rank).clamp(min=0)
    return (gap.cummax(0).values if len(gap) else gap).clamp(max=n - len(wanted)) + rank
