"""A heat map: how much each row gains or loses against the full model on every kind of question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vtprune.bench.drawing import GREY, INK, SIZE, SMALL, figure
from vtprune.bench.series import CONTROLS, scored

LEAST = 5.0
"""Points of difference at which colours are full, at least: noise must not look like a result."""
ALL = "all"


def plot_labels(name: str, task: Mapping[str, Any], label: str):
    """A figure with one block of rows for each ratio, or None where the full model or the label is missing."""
    full = scored(task, "full")
    if full is None or label not in full["labels"]:
        return None
    values = list(full["labels"][label])
    blocks = _blocks(task)
    if not blocks:
        return None
    many = sum(len(rows) for _, rows in blocks)
    drawn = figure(max(5.5, 2.6 + 0.78 * (len(values) + 1)), 1.9 + 0.27 * many + 0.25 * len(blocks))
    heights = [len(rows) for _, rows in blocks]
    panels = drawn.subplots(len(blocks), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    cells = [cell for _, rows in blocks for _, row in rows for cell in _cells(row, label, values)]
    reach = max([LEAST, *(abs(value) for value, _ in cells if value is not None)])
    for axes, (ratio, rows) in zip(panels, blocks, strict=True):
        image = _block(axes, [(row_name, _cells(row, label, values)) for row_name, row in rows], reach)
        for words, (_, row) in zip(axes.get_yticklabels(), rows, strict=True):
            words.set_color(GREY if row["kind"] in CONTROLS else INK)
        axes.set_ylabel(f"{100 * ratio:g} % kept", fontsize=SMALL, color=INK)
    head = [f"{ALL}\nn={full['n']}\nfull {100 * full['score']:.0f}"]
    head += [f"{value}\nn={one['n']}\nfull {100 * one['score']:.0f}" for value, one in full["labels"][label].items()]
    _columns(panels, head)
    bar = drawn.colorbar(image, ax=list(panels), shrink=min(1.0, 4 / (1 + 0.27 * many)), aspect=18, pad=0.015)
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label("points above or below the full model", fontsize=SMALL)
    bar.outline.set_visible(False)
    drawn.suptitle(f"{name}: difference from the full model by {label}", fontsize=SIZE + 2, color=INK)
    return drawn


def _blocks(task: Mapping[str, Any]) -> list[tuple[float, list[tuple[str, Mapping[str, Any]]]]]:
    """Scored rows by ratio, most tokens first, the best first in each."""
    found: dict[float, list[tuple[str, Mapping[str, Any]]]] = {}
    for name, row in task["rows"].items():
        if row.get("to_full") and row["keep_ratio"] < 1:
            found.setdefault(row["keep_ratio"], []).append((name.partition("@")[0], row))
    ordered = sorted(found.items(), reverse=True)
    return [(ratio, sorted(rows, key=lambda pair: -pair[1]["score"])) for ratio, rows in ordered]


def _cells(row: Mapping[str, Any], label: str, values: Sequence[str]) -> list[tuple[float | None, bool]]:
    """(points of difference, whether it can be told from zero), of all questions and of each value of the label."""
    whole = row["to_full"]
    pairs = [(whole["difference"], whole["interval"])]
    for value in values:
        one = row["labels"].get(label, {}).get(value, {})
        pairs.append((one.get("to_full"), one.get("to_full_interval")))
    return [
        (None if difference is None else 100 * difference, bool(interval) and not interval[0] <= 0 <= interval[1])
        for difference, interval in pairs
    ]


def _block(axes, rows: Sequence[tuple[str, list[tuple[float | None, bool]]]], reach: float):
    """One ratio's rows as coloured cells with their numbers; bold are those that can be told from zero."""
    grid = [[float("nan") if value is None else value for value, _ in cells] for _, cells in rows]
    image = axes.imshow(grid, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    for i, (_, cells) in enumerate(rows):
        for j, (value, told) in enumerate(cells):
            if value is not None:
                axes.text(
                    j,
                    i,
                    f"{value:+.0f}".replace("-", "\N{MINUS SIGN}") if abs(value) >= 0.5 else "0",
                    ha="center",
                    va="center",
                    fontsize=SMALL,
                    color="white" if abs(value) > 0.62 * reach else INK,
                    fontweight="bold" if told else "normal",
                )
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=SMALL)
    axes.tick_params(length=0)
    # the mean of all stands apart
    axes.axvline(0.5, color="white", linewidth=4)
    for side in axes.spines.values():
        side.set_visible(False)
    return image


def _columns(panels: Sequence[Any], head: Sequence[str]) -> None:
    """What the columns are, above the first block only."""
    for axes in panels[1:]:
        axes.set_xticks([])
    first = panels[0]
    first.xaxis.tick_top()
    crowded = max(len(part) for words in head for part in words.splitlines()) > 11
    turned = {"rotation": 35, "ha": "left"} if crowded else {}
    words = [" · ".join(one.splitlines()) for one in head] if crowded else head
    first.set_xticks(range(len(head)), words, fontsize=SMALL, **turned)
    first.tick_params(axis="x", length=0)
