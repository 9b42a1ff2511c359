"""Scores over what they cost, in visual tokens and in time: all rows, and the front that no other row beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vtprune.bench.drawing import (
    COLORS,
    GREY,
    INK,
    SIZE,
    SMALL,
    apart,
    figure,
    label_gap,
    levels,
    log_ticks,
    plain,
)
from vtprune.bench.series import Point, by_time, by_tokens, front, point, scored, series


def plot_cost(name: str, task: Mapping[str, Any]):
    """A figure with a panel for tokens and, where times were measured, one for time; None without rows at a ratio."""
    panels = [(by_tokens(task), "visual tokens that a decoder layer sees, % of the full model's (log scale)")]
    times, batch = by_time(task)
    if times:
        words = "ms to the first token: vision tower, selecting, prefill"
        panels.append((times, f"{words} (median, batch of {batch}, log scale)"))
    panels = [(costs, words) for costs, words in panels if series(task, costs)]
    if not panels:
        return None
    drawn = figure(7.0 * len(panels), 5.2)
    for axes, (costs, words) in zip(drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels):
        _panel(axes, task, costs)
        axes.set_xlabel(words, fontsize=SMALL)
    drawn.axes[0].set_ylabel(f"{task.get('metric', 'score')}, %", fontsize=SMALL)
    drawn.suptitle(f"{name}: what a row costs and what it scores", fontsize=SIZE + 2, color=INK)
    return drawn


def _panel(axes, task: Mapping[str, Any], costs: Mapping[str, float]) -> None:
    lines = series(task, costs)
    points = [(one, line.control) for line in lines for one in line.points]
    points += [
        (point(name, row, costs[name]), True)
        for name, row in task["rows"].items()
        if row["kind"] == "full" and name in costs and row.get("score") is not None
    ]
    best = front([one for one, _ in points])
    plain(axes)
    _limits(axes, task, [one for one, _ in points])
    levels(axes, task)
    for control, color, mark, words in ((False, COLORS[0], "o", "policy"), (True, COLORS[1], "s", "control")):
        some = [one for one, kind in points if kind == control]
        face = color if not control else "white"
        # faint unless nobody beats them
        for strong, alpha in ((True, 1.0), (False, 0.35)):
            of = [one for one in some if (one in best) == strong]
            axes.plot(
                [one.x for one in of],
                [one.score for one in of],
                mark,
                color=color,
                markerfacecolor=face,
                markersize=6,
                alpha=alpha,
                zorder=3,
                label=words if strong else None,
            )
    axes.step(
        [one.x for one in best], [one.score for one in best], where="post", color=GREY, linewidth=1.2, label="front"
    )
    _name_front(axes, best)
    axes.legend(fontsize=SMALL, edgecolor="none", framealpha=0.9, loc="lower right")


def _limits(axes, task: Mapping[str, Any], points: Sequence[Point]) -> None:
    """Room at the left, where the names of the front stand: nothing is there that would be better and cheaper."""
    rows = [scored(task, kind) for kind in ("full", "blind", "other")]
    ys = [one.score for one in points] + [100 * row["score"] for row in rows if row is not None]
    room = 0.06 * (max(ys) - min(ys) or 1)
    axes.set_ylim(min(ys) - room, max(ys) + 2 * room)
    low, high = min(one.x for one in points), max(one.x for one in points)
    log_ticks(axes, [low, high])
    axes.set_xlim(low / max(high / low, 1.5) ** 0.6, high * max(high / low, 1.5) ** 0.06)


def _name_front(axes, best: Sequence[Point]) -> None:
    """The front's names, above and to the left of its points."""
    gap = 1.1 * label_gap(axes)
    for one, y in zip(best, apart([one.score + gap * 0.8 for one in best], gap), strict=True):
        axes.annotate(
            one.row,
            (one.x, one.score),
            (one.x * 0.93, y),
            ha="right",
            va="center",
            fontsize=SMALL,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )
