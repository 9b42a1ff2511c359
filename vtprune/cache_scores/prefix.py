"""PrefixKV: how many entries each layer of a cache drops, so that all layers keep the same share of their attention.

Wang et al., "PrefixKV: Adaptive Prefix KV Cache is What Vision Instruction-Following Models Need for Efficient
Generation", NeurIPS 2025, arXiv:2412.03409. Differs from the authors' code: by default the counts of all layers sum to
what was asked for, with ``tolerance=5`` they are those of its search; which entries stay says ``keep_best``.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PUBLISHED_TOLERANCE = 5


class Drops(NamedTuple):
    """What each layer drops.

    counts:    (L,) numbers of entries. fractions: (L,) of the layer's entries, what a profile is made of.
    raw:       (L,) numbers that the search ended with, before they were scaled to the sum.
    threshold: the share of attention that the layers keep at least, before they were scaled.
    """

    counts: tuple[int, ...]
    fractions: tuple[float, ...]
    raw: tuple[int, ...]
    threshold: float


def prefix_drops(scores: Sequence[Tensor], keep_ratio: float, *, protect: int = 0, tolerance: int = 0) -> Drops:
    """The numbers that all layers drop together, ``1 - keep_ratio`` of all entries that compete.

    scores:    for each layer (N_l,) >= 0 of the entries that compete, accumulated attention; or one (L, N).
    protect:   how many entries of each layer among them stay whatever they score: first and last ones.
    tolerance: 0: exactly the sum that was asked for, half to even, or as many as may go: one entry and the protected
               ones stay in each layer. Where layers tie the first ones keep. Above 0, 5 as published: bisection for
               the threshold ends when it drops fewer than this too many or too few, and the numbers are scaled to the
               sum and rounded down.
    Raises ValueError for a keep_ratio outside (0, 1], negative numbers and layers without entries.
    """
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio is the fraction of entries KEPT, in (0, 1]; got {keep_ratio!r}")
    if protect < 0 or tolerance < 0:
        raise ValueError(f"protect and tolerance are 0 or more; got {protect!r} and {tolerance!r}")
    shares = [_shares(score) for score in scores]
    # 240 * (1 - 0.8) is a hair below 48, of which the rounding down would take one off
    target = round(sum(map(len, shares)) * (1 - keep_ratio), 6)
    sizes = [len(share) for share in shares]
    if not tolerance:
        counts, threshold = _exact(shares, round(target), protect)
        return Drops(counts, tuple(c / n for c, n in zip(counts, sizes, strict=True)), counts, threshold)
    raw, threshold = _bisected(shares, target, protect, tolerance)
    scaled = [math.floor(drop * target / sum(raw)) if sum(raw) else 0 for drop in raw]
    fractions = tuple(min(drop, n) / n for drop, n in zip(scaled, sizes, strict=True))
    return Drops(counts_of(fractions, sizes), fractions, raw, threshold)


def counts_of(fractions: Sequence[float], sizes: Sequence[int]) -> tuple[int, ...]:
    """What layers of these sizes drop by a profile: half to even."""
    return tuple(round(fraction * n) for fraction, n in zip(fractions, sizes, strict=True))


def mean_fractions(profiles: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """A profile for any prompt: the mean over those of some samples. profiles: (samples, L)."""
    if not profiles or len({len(profile) for profile in profiles}) != 1:
        raise ValueError(f"profiles are of one model, and one or more; got lengths {[len(p) for p in profiles]}")
    return tuple(sum(layer) / len(profiles) for layer in zip(*profiles))


def _shares(score: Tensor) -> Tensor:
    """(N,) float64 on the CPU: how much of all attention the best 1, 2, ... N entries have."""
    if score.dim() != 1 or not len(score):
        raise ValueError(f"the scores of a layer are (N,), N of 1 or more; got {tuple(score.shape)}")
    score = score.detach().double().cpu()
    total = score.sum()
    score = score if total > 0 else torch.ones_like(score)
    return score.sort(descending=True).values.cumsum(0) / score.sum()


def _dropped(shares: Sequence[Tensor], p: float, protect: int) -> tuple[int, ...]:
    needed = (1 + int((share < p).sum()) for share in shares)
    return tuple(max(0, len(share) - need - protect) for share, need in zip(shares, needed))


def _bisected(shares: Sequence[Tensor], target: float, protect: int, tolerance: int) -> tuple[tuple[int, ...], float]:
    low, high = 0.0, 1.0
    while True:
        p = (low + high) / 2
        drops = _dropped(shares, p, protect)
        if abs(sum(drops) - target) < tolerance or p in (low, high):
            return drops, p
        low, high = (low, p) if sum(drops) < target else (p, high)


def _exact(shares: Sequence[Tensor], target: int, protect: int) -> tuple[tuple[int, ...], float]:
    """As a threshold falls past a share, its layer drops one entry more: the ``target`` largest shares are passed."""
    # the last ones are of entries that stay: one, and the protected
    steps = [share[: max(0, len(share) - 1 - protect)] for share in shares]
    layer = torch.cat([torch.full((len(some),), i) for i, some in enumerate(steps)])
    # of equals the last layer comes first
    order = torch.cat(steps).flip(0).sort(descending=True, stable=True).indices[:target]
    counts = torch.bincount(layer.flip(0)[order], minlength=len(shares)).tolist()
    return tuple(counts), float(torch.cat(steps).flip(0)[order[-1]]) if len(order) else 1.0
