"""Lines of a plot, from a summary: the rows of one policy or control at every ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONTROLS = ("random", "uniform", "pool", "downsampled", "same time", "fewer frames")
"""Kinds that a policy is compared with at the same ratio, as they follow each other in tables and plots."""


@dataclass(frozen=True)
class Point:
    """A row of the result table. x: what it costs. score, low, high: in per cent."""

    row: str
    keep_ratio: float
    x: float
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """A policy or control, its points by what they cost."""

    name: str
    control: bool
    points: tuple[Point, ...]

    @property
    def mean(self) -> float:
        """Mean score, which orders the panels of a plot."""
        return sum(point.score for point in self.points) / len(self.points)


def by_tokens(task: Mapping[str, Any]) -> dict[str, float]:
    """Per cent of the full model's visual tokens that a decoder layer sees, by row."""
    shares = {name: row["tokens"]["layer_share"] for name, row in task["rows"].items()}
    return {name: 100 * share for name, share in shares.items() if share}


def by_time(task: Mapping[str, Any]) -> tuple[dict[str, float], int | None]:
    """Median milliseconds to the first token by row, at the smallest batch that was timed, and that batch."""
    timed = [row for row in task["times"] if row.get("ttft_ms") and "copies" not in row]
    batch = min((row["batch"] for row in timed), default=None)
    return {row["row"]: row["ttft_ms"]["median"] for row in timed if row["batch"] == batch}, batch


def series(task: Mapping[str, Any], x: Mapping[str, float]) -> list[Series]:
    """All policies, then all controls, where the row has a score and a cost; the best first among policies."""
    found: dict[tuple[bool, str], list[Point]] = {}
    for name, row in task["rows"].items():
        if name not in x or row["refused"] or row.get("score") is None or row["kind"] in ("full", "blind", "other"):
            continue
        if row["keep_ratio"] >= 1:
            continue
        # "same time" is one line for each policy that it stands beside
        beside = f" as {row['beside'].partition('@')[0]}" if row["beside"] else ""
        key = (row["kind"] in CONTROLS, f"{row['policy'] or row['kind']}{beside}")
        found.setdefault(key, []).append(point(name, row, x[name]))
    lines = [Series(name, control, _sorted(points)) for (control, name), points in found.items()]
    return sorted(lines, key=lambda one: (one.control, _place(one) if one.control else -one.mean))


def point(name: str, row: Mapping[str, Any], x: float) -> Point:
    """A row as a point; without an interval it is a point alone."""
    low, high = row["interval"] or (row["score"], row["score"])
    return Point(name, row["keep_ratio"], x, 100 * row["score"], 100 * low, 100 * high)


def _sorted(points: Sequence[Point]) -> tuple[Point, ...]:
    return tuple(sorted(points, key=lambda one: one.x))


def _place(one: Series) -> int:
    return next((i for i, kind in enumerate(CONTROLS) if one.name.startswith(kind)), len(CONTROLS))


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front: points that no other beats at the same cost or less, the cheapest first."""
    found: list[Point] = []
    for one in sorted(points, key=lambda one: (one.x, -one.score)):
        if not found or one.score > found[-1].score:
            found.append(one)
    return found


def scored(task: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """The row of a kind that there is one of, if it has a score."""
    rows = [row for row in task["rows"].values() if row["kind"] == kind and row.get("score") is not None]
    return rows[0] if rows else None
