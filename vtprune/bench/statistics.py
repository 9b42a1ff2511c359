"""Intervals and tests for answers to questions that come in clusters: several about one picture or video.

Scores are arrays of one number per question, between 0 and 1. Whole clusters are resampled, because questions about one
picture are not independent: an interval that takes them to be is too narrow (Miller, "Adding Error Bars to Evals: A
Statistical Approach to Language Model Evaluations", 2024, arXiv 2411.00640). The seed is fixed: the same answers have
the same intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

DRAWS = 2000
"""Bootstrap samples."""
LEVEL = 0.95
SEED = 0
Z = 1.959963984540054
"""Standard deviations of a normal distribution that hold 95 %."""
CACHED = 20_000_000
"""Weights of a bootstrap (draws times clusters) that are remembered; larger ones are drawn again for every interval."""


def clustered(clusters: Sequence[str]) -> NDArray[np.int64]:
    """Clusters by name as numbers 0, 1, ... (Q,)."""
    return np.unique(np.asarray(clusters, dtype=str), return_inverse=True)[1].reshape(-1)


def bootstrap(values: Floats, clusters: NDArray[np.int64], figure: Callable[[Floats], Floats]) -> Floats:
    """A figure of the means over questions, in each of ``DRAWS`` samples of clusters.

    values:   (Q, k) k numbers for every question. clusters: (Q,) as ``clustered`` numbers them.
    figure:   of (n, k) means, one row for each sample, to (n,). A mean is over questions: a cluster that was drawn
              brings all of its own.
    """
    many = int(clusters.max()) + 1
    sums = np.zeros((many, values.shape[1] + 1))
    np.add.at(sums, clusters, np.column_stack([values, np.ones(len(values))]))
    means = [part[:, :-1] / part[:, -1:] for part in (weights @ sums for weights in _weights(many))]
    return figure(np.concatenate(means))


def _weights(many: int) -> Iterator[Floats]:
    """How often each of so many clusters is in each sample: parts of (DRAWS, many)."""
    if DRAWS * many <= CACHED:
        yield _all_weights(many)
        return
    random = np.random.default_rng(SEED)
    rows = max(1, CACHED // many)
    for start in range(0, DRAWS, rows):
        yield _drawn(random, min(rows, DRAWS - start), many)


@lru_cache(maxsize=4)
def _all_weights(many: int) -> Floats:
    return _drawn(np.random.default_rng(SEED), DRAWS, many)


def _drawn(random: np.random.Generator, rows: int, many: int) -> Floats:
    places = random.integers(many, size=(rows, many)) + many * np.arange(rows)[:, None]
    return np.bincount(places.reshape(-1), minlength=rows * many).reshape(rows, many).astype(np.float64)


def percentiles(draws: Floats) -> Interval:
    """The middle ``LEVEL`` of bootstrap samples."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_interval(values: Floats, clusters: NDArray[np.int64]) -> Interval | None:
    """The interval of a mean, such as a paired difference; None if there are not two clusters to tell apart."""
    if not len(values) or clusters.max() == 0:
        return None
    return percentiles(bootstrap(values[:, None], clusters, lambda means: means[:, 0]))


def wilson(right: float, n: int) -> Interval:
    """Wilson's score interval of a share (Wilson, "Probable Inference, the Law of Succession, and Statistical
    Inference", 1927). right: how many of n."""
    share, square = right / n, Z * Z / n
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def score_interval(scores: Floats, clusters: NDArray[np.int64]) -> tuple[Interval | None, str]:
    """The interval of a mean score, and how it was found.

    Wilson's where scores are 0 or 1 and every question is a cluster of its own; otherwise clusters are resampled. Where
    all clusters score alike resampling shows no spread at all; then it is Wilson's with as many trials as clusters.
    """
    if not len(scores):
        return None, "no questions"
    many = int(clusters.max()) + 1
    if many < 2:
        return None, "one cluster: no interval"
    if many == len(scores) and np.isin(scores, (0.0, 1.0)).all():
        return wilson(float(scores.sum()), len(scores)), "Wilson"
    low, high = percentiles(bootstrap(scores[:, None], clusters, lambda means: means[:, 0]))
    if low == high:
        return wilson(float(scores.mean()) * many, many), "Wilson, as many trials as clusters"
    return (low, high), "clusters resampled"


def retained(pruned: Floats, full: Floats, blind: Floats, clusters: NDArray[np.int64]) -> dict[str, object]:
    """What is left of what seeing is worth: (pruned - blind) / (full - blind), of mean scores of the same questions.

    Returns {"value", "interval", "why"}. value is None where full does not score above blind: there is nothing to be
    retained. interval is None where resampling often finds nothing (in 2.5 % of samples or more), or with one cluster.
    """
    if not len(full) or full.mean() <= blind.mean():
        return {"value": None, "interval": None, "why": "full does not score above blind"}
    value = float((pruned.mean() - blind.mean()) / (full.mean() - blind.mean()))
    if clusters.max() == 0:
        return {"value": value, "interval": None, "why": "one cluster: no interval"}

    def share(means: Floats) -> Floats:
        worth = means[:, 1] - means[:, 2]
        return np.where(worth > 0, (means[:, 0] - means[:, 2]) / np.where(worth > 0, worth, 1.0), np.nan)

    draws = bootstrap(np.column_stack([pruned, full, blind]), clusters, share)
    nothing = float(np.isnan(draws).mean())
    if nothing >= (1 - LEVEL) / 2:
        return {"value": value, "interval": None, "why": f"in {nothing:.1%} of samples full is not above blind"}
    return {"value": value, "interval": percentiles(draws[~np.isnan(draws)]), "why": ""}


def verdict(interval: Interval | None) -> str:
    """A difference in words: "better", "worse", "not told apart", or "no interval"."""
    if interval is None:
        return "no interval"
    return "better" if interval[0] > 0 else "worse" if interval[1] < 0 else "not told apart"
