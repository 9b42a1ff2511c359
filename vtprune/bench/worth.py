"""What seeing is worth: how much of it a row retains, and its score on questions that cannot be answered without."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtprune.bench.sheet import Column, Sheet
from vtprune.bench.statistics import retained, score_interval


def visual_gain(sheet: Sheet, column: Column) -> dict[str, Any] | None:
    """The share of the visual gain that a row retains, (row - blind) / (full - blind); None without full or blind."""
    full, blind = _first(sheet, "full"), _first(sheet, "blind")
    if full is None or blind is None or column.condition.kind in ("full", "blind"):
        return None
    where = column.asked & full.asked & blind.asked
    groups = sheet.grouped(where) if where.any() else np.zeros(0, dtype=np.int64)
    return retained(column.scores[where], full.scores[where], blind.scores[where], groups)


def dependent(sheet: Sheet, keep_ratio: float) -> tuple[NDArray[np.bool_], str] | None:
    """Which questions need the whole picture, (Q,), and in words; None without full or blind.

    Full is right, and wrong are blind and, where it was run at this ratio, every token of a downsampled picture: such
    questions tell a method from merely making the picture smaller (VTC-Bench, arXiv 2510.07143).
    """
    full, blind = _first(sheet, "full"), _first(sheet, "blind")
    if full is None or blind is None:
        return None
    where, words = full.right & blind.asked & ~blind.right, "full right, blind wrong"
    for small in sheet.of_kind("downsampled", keep_ratio):
        where, words = where & small.asked & ~small.right, f"{words}, {small.name} wrong"
    return where, words


def on_dependent(sheet: Sheet, column: Column) -> dict[str, Any] | None:
    """A row's score on the questions of ``dependent`` at its ratio; None of rows that define them."""
    if column.condition.kind in ("full", "blind", "downsampled"):
        return None
    found = dependent(sheet, column.condition.keep_ratio)
    if found is None:
        return None
    where, words = found[0] & column.asked, found[1]
    n = int(where.sum())
    out = {"questions": n, "of": int(column.asked.sum()), "which": words, "score": None, "interval": None}
    if not n:
        return out
    interval, how = score_interval(column.scores[where], sheet.grouped(where))
    clusters = len(set(sheet.clusters[where].tolist()))
    return {**out, "clusters": clusters, "score": float(column.scores[where].mean()), "interval": interval, "how": how}


def _first(sheet: Sheet, kind: str) -> Column | None:
    return next(iter(sheet.of_kind(kind)), None)
