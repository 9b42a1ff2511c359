"""Scores over the visual tokens that the decoder's layers see, each policy against the band of random tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from vtprune.bench.drawing import (
    BAND,
    COLORS,
    GREY,
    INK,
    MARKS,
    SIZE,
    SMALL,
    apart,
    figure,
    label_gap,
    levels,
    log_ticks,
    plain,
)
from vtprune.bench.series import Series, by_tokens, scored, series

TOGETHER = 5
"""So many policies can be told apart in one panel."""
COLUMNS = 4
FAR = 1.5
"""How many times the fewest tokens a line begins with that does not begin at the left."""
DASHES = {"random": "-", "uniform": "--", "pool": ":", "downsampled": "-."}
X_LABEL = (
    "visual tokens that a decoder layer sees, % of the full model's (mean over layers, log scale)\n"
    "bars and grey band (random tokens): 95 % intervals"
)


def plot_tokens(name: str, task: Mapping[str, Any]):
    """A figure, or None without rows at a ratio: one panel for few policies, one for each of many."""
    lines = series(task, by_tokens(task))
    if not lines:
        return None
    policies = [line for line in lines if not line.control]
    drawn = _one(task, lines) if len(policies) <= TOGETHER else _many(task, lines)
    drawn.suptitle(f"{name}: {task.get('metric', 'score')} over visual tokens", fontsize=SIZE + 2, color=INK)
    return drawn


def _y_label(task: Mapping[str, Any]) -> str:
    return f"{task.get('metric', 'score')}, %"


def _limits(axes, task: Mapping[str, Any], lines: Sequence[Series]) -> None:
    """All points and levels inside, whether there is ink for them yet or not."""
    flat = [100 * row["score"] for kind in ("full", "blind", "other") if (row := scored(task, kind)) is not None]
    ys = [y for line in lines for one in line.points for y in (one.low, one.high)] + flat
    xs = [one.x for line in lines for one in line.points]
    room = 0.05 * (max(ys) - min(ys) or 1)
    axes.set_ylim(min(ys) - room, max(ys) + room)
    log_ticks(axes, [*xs, 100])
    axes.set_xlim(min(xs) / 1.15, 104)


def _band(axes, lines: Sequence[Series]) -> None:
    """The intervals of the random rows as a band, from the lowest ratio to the highest."""
    for line in lines:
        if line.name.startswith("random"):
            x = [one.x for one in line.points]
            axes.fill_between(
                x, [one.low for one in line.points], [one.high for one in line.points], color=BAND, zorder=0
            )


def _line(axes, line: Series, color: str, mark: str, bars: bool) -> None:
    x, y = [one.x for one in line.points], [one.score for one in line.points]
    style = DASHES.get(line.name.partition(" ")[0].partition(":")[0], (0, (3, 1, 1, 1))) if line.control else "-"
    axes.plot(x, y, color=color, linestyle=style, marker=mark, markersize=5, linewidth=1.6, zorder=3)
    if bars:
        below, above = [one.score - one.low for one in line.points], [one.high - one.score for one in line.points]
        axes.errorbar(x, y, (below, above), fmt="none", ecolor=color, elinewidth=0.9, capsize=2, zorder=2)


def _one(task: Mapping[str, Any], lines: Sequence[Series]):
    """All in one panel, named where the lines are furthest apart: at the fewest tokens."""
    drawn = figure(9.2, 5.2)
    axes = drawn.subplots()
    plain(axes)
    _limits(axes, task, lines)
    low, high = axes.get_xlim()
    axes.set_xlim(low / (high / low) ** 0.28, high)
    _band(axes, lines)
    levels(axes, task)
    style, colors = iter(zip(COLORS * 2, MARKS * 2)), []
    for line in lines:
        color, mark = (GREY, ".") if line.control else next(style)
        _line(axes, line, color, mark, bars=not line.control)
        colors.append(color)
    _name_lines(axes, low, lines, colors)
    axes.set_xlabel(X_LABEL, fontsize=SMALL)
    axes.set_ylabel(_y_label(task), fontsize=SMALL)
    return drawn


def _name_lines(axes, low: float, lines: Sequence[Series], colors: Sequence[str]) -> None:
    """Names in a column left of the fewest tokens; where a line begins further right, beside its first point."""
    named = [(line.points[0], line.name, color) for line, color in zip(lines, colors, strict=True)]
    column = [one for one in named if one[0].x < FAR * low]
    for (start, name, color), y in zip(column, apart([one[0].score for one in column], label_gap(axes)), strict=True):
        axes.annotate(
            name,
            (start.x, start.score),
            (low / 1.1, y),
            ha="right",
            va="center",
            fontsize=SMALL,
            color=color,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
        )
    for start, name, color in (one for one in named if one not in column):
        place = {"xytext": (-7, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
        axes.annotate(name, (start.x, start.score), fontsize=SMALL, color=color, **place)


def _many(task: Mapping[str, Any], lines: Sequence[Series]):
    """One panel for each line, the others faint behind it; controls after the policies."""
    shown = [line for line in lines if not line.name.startswith("random")]
    columns = min(COLUMNS, len(shown))
    rows = ceil(len(shown) / columns)
    drawn = figure(2.75 * columns + 0.9, 2.25 * rows + 0.9)
    panels = drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).reshape(-1)
    for i, (axes, line) in enumerate(zip(panels, shown)):
        plain(axes)
        _limits(axes, task, lines)
        _band(axes, lines)
        levels(axes, task, text=i % columns == columns - 1)
        for other in lines:
            grey = GREY if other.name.startswith("random") else "#CCCCCC"
            axes.plot([one.x for one in other.points], [one.score for one in other.points], color=grey, linewidth=0.8)
        _line(axes, line, COLORS[1] if line.control else COLORS[0], "o", bars=True)
        axes.set_title(line.name, fontsize=SIZE, color=INK, loc="left")
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    drawn.supxlabel(X_LABEL, fontsize=SMALL, color=INK)
    drawn.supylabel(_y_label(task), fontsize=SMALL, color=INK)
    return drawn
