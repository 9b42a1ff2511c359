"""Accuracy over the share of visual tokens that the layers process, one line for each policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.quality_table import idles

CONTROLS = {"random": "0.25", "uniform": "0.45", "pool": "0.65"}
MARKS = "osD^vP*Xdh<>"


def plot(rows: Sequence[dict], path: Path) -> None:
    """Writes a picture of judged rows; controls are grey and dashed."""
    figure = Figure(figsize=(10.5, 5.4), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["policy"] for row in rows if "sites" in row))
    # without its grey, which is for controls
    colors = iter([color for i, color in enumerate(colormaps["tab10"].colors) if i != 7])
    for mark, name in zip(MARKS * 9, names, strict=False):
        line = [row for row in rows if row["policy"] == name and "sites" in row and not idles(row)]
        line.sort(key=lambda row: row["layer_share"])
        control = CONTROLS.get(name)
        axes.errorbar(
            [100 * row["layer_share"] for row in line],
            [100 * row["accuracy"] for row in line],
            [100 * row["interval"] for row in line],
            label=name,
            color=control or next(colors, "0"),
            linestyle="--" if control else "-",
            marker=mark,
            markersize=5,
            linewidth=1.3,
            elinewidth=0.7,
            capsize=2,
        )
    whole = next(row for row in rows if row["policy"] == "none")
    axes.axhline(100 * whole["accuracy"], color="0", linewidth=0.8)
    axes.annotate("every token", (4.1, 100 * whole["accuracy"]), va="bottom", fontsize=8)
    blind = max((row for row in rows if row["policy"].endswith("picture")), key=lambda row: row["accuracy"])
    axes.axhline(100 * blind["accuracy"], color="0", linewidth=0.8, linestyle=":")
    axes.annotate(f"blind ({blind['policy']})", (4.1, 100 * blind["accuracy"]), va="bottom", fontsize=8)
    axes.set_xscale("log")
    axes.set_xticks([5, 10, 25, 50, 100], ["5", "10", "25", "50", "100"])
    axes.minorticks_off()
    axes.set_xlim(4, 110)
    axes.set_xlabel("visual tokens that the layers process, % (mean over layers, log scale)")
    axes.set_ylabel("right answers, %")
    axes.set_title("Embedded image model: accuracy over what is paid for")
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=130)
