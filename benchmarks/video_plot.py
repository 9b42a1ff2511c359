"""Two plots of a video run: what more frames are worth at one price, and where the time to the first token goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.video_answers import FEW, SLICE_FRAMES, SLICE_TOKENS, UNPRUNED

CONTROLS = {"random": "0.25", "uniform": "0.55"}
MARKS = "osD^vP*Xdh<>"
PARTS = ("read", "prepare", "vision", "select", "prefill")


def plot(rows: Sequence[dict], times: Sequence[dict], budget: int, keep_ratio: float, path: Path) -> None:
    """Writes a picture of judged rows and of rows of times; either may be empty, and its half stays away.

    budget: visual tokens, of the first half. keep_ratio: of the second.
    """
    halves = [(half, some, at) for half, some, at in ((_accuracy, rows, budget), (_seconds, times, keep_ratio)) if some]
    figure = Figure(figsize=(6.2 * len(halves), 4.6), layout="constrained")
    for (half, some, at), axes in zip(halves, figure.subplots(1, len(halves), squeeze=False)[0]):
        half(axes, some, at)
    figure.savefig(path, dpi=130)


def _accuracy(axes, rows: Sequence[dict], budget: int) -> None:
    """Accuracy over frames: every token, and each policy with ``budget`` tokens."""
    fitting = [row for row in rows if "accuracy" in row]
    lines = {UNPRUNED: [row for row in fitting if row["policy"] == UNPRUNED]}
    for row in fitting:
        tokens = row["frames"] // SLICE_FRAMES * SLICE_TOKENS
        if row["policy"] != UNPRUNED and abs(tokens * row["keep_ratio"] - budget) < 1e-6:
            lines.setdefault(row["policy"], []).append(row)
    start = [row for row in lines[UNPRUNED] if row["frames"] == FEW and FEW // SLICE_FRAMES * SLICE_TOKENS == budget]
    colors = iter(color for i, color in enumerate(colormaps["tab10"].colors) if i != 7)
    for mark, (name, line) in zip(MARKS * 9, lines.items(), strict=False):
        control = "0" if name == UNPRUNED else CONTROLS.get(name)
        line = sorted(line if name == UNPRUNED else [*start, *line], key=lambda row: row["frames"])
        axes.errorbar(
            [row["frames"] for row in line],
            [100 * row["accuracy"] for row in line],
            [100 * row["interval"] for row in line],
            label="every token" if name == UNPRUNED else f"{name}, {budget} tokens",
            color=control or next(colors, "0"),
            linestyle=":" if name == UNPRUNED else "--" if control else "-",
            marker=mark,
            markersize=5,
            linewidth=1.3,
            elinewidth=0.7,
            capsize=2,
        )
    ticks = sorted({row["frames"] for row in fitting})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("frames read, of 256 (log scale)")
    axes.set_ylabel("right answers, %")
    axes.set_ylim(top=101)
    axes.set_title("More frames at one price")
    axes.legend(fontsize=8)


def _seconds(axes, times: Sequence[dict], keep_ratio: float) -> None:
    """Stacked parts of the time from the file to the first token: every token, and each policy at one ratio."""
    bars = [row for row in times if row["policy"] == UNPRUNED or row["keep_ratio"] == keep_ratio]
    names = [f"{row['frames']} {'every token' if row['policy'] == UNPRUNED else row['policy']}" for row in bars]
    left = [0.0] * len(bars)
    for part, color in zip(PARTS, colormaps["tab10"].colors):
        widths = [_part(row, part) for row in bars]
        axes.barh(names, widths, left=left, label=part, color=color)
        left = [a + b for a, b in zip(left, widths)]
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("seconds from the file to the first token")
    axes.set_title(f"Where the time goes, every token or {100 * keep_ratio:g} % kept")
    axes.legend(fontsize=8)


def _part(row: dict, part: str) -> float:
    """Seconds of one part; selecting is inside the prefill, and is taken out of it."""
    seconds = row.get(f"{part}_seconds", 0.0)
    return max(0.0, seconds - row.get("select_seconds", 0.0)) if part == "prefill" else seconds
