"""How many times as fast as plain torch each operation is, over the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

MARKS = "osD^vP*Xdh<>p"


def plot(rows: Sequence[dict], device: str, path: Path) -> None:
    """Writes a picture of the rows that were timed beside plain torch: a panel for each width."""
    fitting = [row for row in rows if "over_plain" in row]
    widths = sorted({row["d"] for row in fitting})
    figure = Figure(figsize=(4.4 * max(1, len(widths)) + 2.2, 4.4), layout="constrained")
    panels = figure.subplots(1, max(1, len(widths)), squeeze=False, sharey=True)[0]
    names = list(dict.fromkeys(row["op"] for row in fitting))
    for axes, width in zip(panels, widths):
        for i, name in enumerate(names):
            line = sorted((row for row in fitting if row["op"] == name and row["d"] == width), key=lambda row: row["n"])
            axes.plot(
                [row["n"] for row in line],
                [row["over_plain"] for row in line],
                label=name,
                color=colormaps["tab20"].colors[2 * i % 20 + i // 10],
                marker=MARKS[i % len(MARKS)],
                markersize=5,
                linewidth=1.3,
            )
        ticks = sorted({row["n"] for row in fitting})
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.axhline(1, color="0", linewidth=0.8)
        axes.set_xlabel("tokens (log scale)")
        axes.set_title(f"width {width}", fontsize=10)
    panels[0].set_ylabel("times as fast as plain torch (log scale)")
    figure.suptitle(f"Operations of vtprune_kernels on {device}", fontsize=10)
    if names:
        figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=130)
