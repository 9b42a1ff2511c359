"""What all plots of a report share: colours that everybody can tell apart, axes, and labels that do not overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vtprune.bench.series import scored

# Okabe and Ito's, without the yellow, which white swallows
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKS = "osD^vP"
INK, GREY, BAND = "#222222", "#777777", "#D9D9D9"
SIZE, SMALL = 9.5, 8.5


def figure(width: float, height: float):
    """An empty figure, in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib; install it with: pip install 'vtprune[bench]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def plain(axes) -> None:
    """Axes without a box, with a faint grid behind."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.grid(color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL, color=GREY, labelcolor=INK)


def log_ticks(axes, values: Sequence[float], unit: str = "") -> None:
    """A logarithmic x axis with round numbers as ticks, so many that all can be read."""
    from matplotlib.ticker import NullFormatter, NullLocator

    low, high = min(values), max(values)
    steps = (1, 2, 5) if high / low > 6 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    every = [step * 10.0**power for power in range(-3, 8) for step in steps]
    ticks = [tick for tick in every if low * 0.95 <= tick <= high * 1.05]
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(ticks, [f"{tick:g}{unit}" for tick in ticks])


def levels(axes, task: Mapping[str, Any], text: bool = True) -> None:
    """Level lines of the full model, of no picture and of another question's picture; labelled at the right end."""
    places = []
    for kind, words, style in (("full", "full", "-"), ("blind", "blind", ":"), ("other", "other picture", (0, (1, 4)))):
        row = scored(task, kind)
        if row is not None:
            axes.axhline(100 * row["score"], color=INK, linewidth=1.0, linestyle=style, zorder=1)
            places.append((100 * row["score"], f"{words} {100 * row['score']:.1f}"))
    if text:
        margin_labels(axes, places)


def margin_labels(axes, places: Sequence[tuple[float, str]]) -> None:
    """Words to the right of the axes at heights in data units, moved apart where they would overlap."""
    moved = apart([place for place, _ in places], label_gap(axes))
    for (_, words), y in zip(places, moved, strict=True):
        where = axes.get_yaxis_transform()
        axes.text(1.01, y, words, transform=where, ha="left", va="center", fontsize=SMALL, color=INK)


def label_gap(axes) -> float:
    """The height of a label in data units; limits must be set."""
    bottom, top = axes.get_ylim()
    grid = axes.get_subplotspec().get_gridspec().nrows if axes.get_subplotspec() else 1
    # what is left of the figure beside titles and ticks
    points = 72 * (axes.get_figure().get_size_inches()[1] - 1.1) / grid
    return (top - bottom) * 1.25 * SMALL / points


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Heights at least ``gap`` apart, in the same order and as near to where they were as that allows."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    # blocks of labels that touch: the mean of where they want to be, and how many
    blocks: list[list[float]] = []
    for i in order:
        blocks.append([places[i], 1])
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < gap * (blocks[-1][1] + blocks[-2][1]) / 2:
            (one, n), (other, m) = blocks.pop(), blocks.pop()
            blocks.append([(one * n + other * m) / (n + m), n + m])
    found = [middle + gap * (k - (n - 1) / 2) for middle, n in blocks for k in range(int(n))]
    return [y for _, y in sorted(zip(order, found, strict=True))]
