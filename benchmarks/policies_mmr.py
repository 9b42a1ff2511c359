"""Maximal marginal relevance against the form with a matrix of all pairs, for ``benchmarks.policies``."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.engine_time import Bound, ratios, spread
from benchmarks.policies_time import turns
from vtprune.blocks.mmr import mmr

SIZES = ((576, 4096), (2880, 3584), (8000, 3584))
"""(N, D)."""
QUICK_SIZES = ((60, 16), (200, 16))
KEEP = (0.1, 0.25, 0.5)
FEATURES = ("gaussian", "clustered")
AT_LEAST = {(2880, 0.1): 3.0, (8000, 0.1): 4.0}
"""(N, keep ratio) -> how many times as fast as the form with a matrix; anything else must be no slower."""


def literal_mmr(features: Tensor, importance: Tensor, k: int, trade_off: float = 0.5, parallel_k: int = 1) -> Tensor:
    """(k,) int64 picks in order: the similarities of all pairs first, then pick by pick, each asked for by the host."""
    low, high = importance.min(), importance.max()
    scaled = ((importance - low) / (high - low + 1e-6)).float()
    unit = features.float()
    unit = unit / (unit.norm(dim=-1, keepdim=True) + 1e-8)
    similarity = unit @ unit.T
    nearest = torch.full((len(unit),), -2.0, device=unit.device)
    taken = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
    order: list[int] = []
    while len(order) < k:
        score = trade_off * scaled - (1 - trade_off) * nearest if order else scaled
        score = score.masked_fill(taken, -torch.inf)
        for row in _best(score, min(parallel_k, k - len(order))):
            order.append(row)
            taken[row] = True
            nearest = torch.maximum(nearest, similarity[row])
    return torch.tensor(order, device=features.device)


def _best(score: Tensor, k: int) -> list[int]:
    return [int(score.argmax())] if k == 1 else score.sort(descending=True, stable=True).indices[:k].tolist()


def features_of(kind: str, n: int, width: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """(N, D) float32 and an importance (N,). "clustered": eight near-duplicates of every direction.

    Importance is like attention, most of it on a few tokens: then diversity decides most picks, which is the harder
    case for an implementation that looks at few similarities.
    """
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, width, generator=generator)
    if kind == "clustered":
        groups = torch.arange(n) % max(1, n // 8)
        x = x[groups] + 0.1 * torch.randn(n, width, generator=generator)
    return x.to(device), (2 * torch.randn(n, generator=generator)).softmax(0).to(device)


def mmr_row(kind: str, n: int, width: int, keep: float, rounds: int, clock: Mapping, device: str = "cpu") -> dict:
    """One size against the literal form: times, how many times as fast, and whether the picks are the same."""
    features, importance = features_of(kind, n, width, device)
    k, picks = round(n * keep), {}

    def by(name: str, fn):
        def call():
            picks[name] = fn(features, importance, k)

        return call

    seconds = turns({"literal": by("literal", literal_mmr), "ours": by("ours", mmr)}, rounds, clock)
    bound = Bound(">=", AT_LEAST.get((n, keep), 1.0))
    return {
        "what": "mmr",
        **{"features": kind, "visual": n, "width": width, "keep_ratio": keep},
        **agreement(picks["ours"].tolist(), picks["literal"].tolist(), features, importance),
        **spread("seconds", seconds["ours"]),
        **spread("literal_seconds", seconds["literal"]),
        "runs": len(seconds["ours"]),
        **bound.judged("speedup", ratios(seconds["literal"], seconds["ours"])),
    }


def agreement(mine: Sequence[int], other: Sequence[int], features: Tensor, importance: Tensor) -> dict:
    """Whether two orders of picks are one; if not, how they differ and by how little their scores do where they part.

    ``gap`` is the difference in float64 of the scores of the two tokens picked where the orders part: rounding decides
    between two tokens whose scores differ by about 1e-7.
    """
    if list(mine) == list(other):
        return {"same": True}
    part = next(i for i, (a, b) in enumerate(zip(mine, other)) if a != b)
    rivals, before = [mine[part], other[part]], list(mine[:part])
    x = features.double()
    unit = x / (x.norm(dim=-1, keepdim=True) + 1e-8)
    scaled = importance.double()
    scaled = (scaled - scaled.min()) / (scaled.max() - scaled.min() + 1e-6)
    score = 0.5 * scaled[rivals] - 0.5 * (unit[rivals] @ unit[before].T).amax(1) if before else scaled[rivals]
    differing = len(set(mine) ^ set(other)) // 2
    return {"same": False, "differing": differing, "part_at": part, "gap": float((score[0] - score[1]).abs())}
