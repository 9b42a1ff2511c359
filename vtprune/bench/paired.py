"""Two ways to answer, compared on the questions that both were asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtprune.bench.mcnemar import mcnemar
from vtprune.bench.sheet import Column, Sheet
from vtprune.bench.statistics import clustered, mean_interval, verdict


def paired(one: Column, other: Column, clusters: NDArray[np.str_]) -> dict[str, Any]:
    """What the first has over the second: the mean difference of scores, its interval, and McNemar's test.

    Of a row of several seeds the mean over them is compared, and by McNemar's test what most of them got right.

    clusters: (Q,) names. Both columns have Q entries, of the same questions.
    """
    both = one.asked & other.asked
    found = {"row": other.name, "n": int(both.sum()), "clusters": len(set(clusters[both].tolist()))}
    if not both.any():
        return {**found, "difference": None, "interval": None, "verdict": "no question in common", "test": None}
    difference = one.scores[both] - other.scores[both]
    interval = mean_interval(difference, clustered(clusters[both]))
    mine, theirs = one.right[both], other.right[both]
    return {
        **found,
        "difference": float(difference.mean()),
        "interval": interval,
        "verdict": verdict(interval),
        "test": mcnemar(int((theirs & ~mine).sum()), int((mine & ~theirs).sum())).values(),
    }


def ties(sheet: Sheet, columns: Sequence[Column]) -> dict[str, Any]:
    """The best of some rows, and which of the others cannot be told from it: their difference may be zero."""
    best = max(columns, key=lambda column: float(np.nanmean(column.scores)))
    others = [column for column in columns if column is not best]
    found = {column.name: paired(column, best, sheet.clusters) for column in others}
    return {
        "best": best.name,
        "tied": [name for name, pair in found.items() if pair["verdict"] in ("not told apart", "no interval")],
        "behind": [name for name, pair in found.items() if pair["verdict"] == "worse"],
    }
