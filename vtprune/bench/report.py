"""``vtprune bench report``: a result folder as Markdown, as one HTML file, as JSON and as plots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from vtprune.bench.html import html
from vtprune.bench.markdown import markdown
from vtprune.bench.page import page
from vtprune.bench.plots import Plot, draw
from vtprune.bench.result_folder import read_results
from vtprune.bench.sheet import sheets
from vtprune.bench.summary import summarize

PLOTS = "plots"


def command(folder: Path, out: Path | None = None, plots: bool = True) -> list[Path]:
    """Writes summary.json, report.md, report.html and a folder of plots; returns the files, the HTML first.

    out:   the folder to write into; the result folder itself if None.
    plots: without them matplotlib is not needed.
    Raises ValueError for a folder that holds no run, ImportError where plots are wanted and matplotlib is missing.
    """
    folder = Path(folder)
    results = read_results(folder)
    summary = summarize(results)
    numbered = enumerate(summary["tasks"].items(), start=1)
    drawn = {name: list(draw(name, task, number)) for number, (name, task) in numbered} if plots else {}
    files = {f"{PLOTS}/{plot.file}": plot.png for some in drawn.values() for plot in some}
    placed = {name: [_in_folder(plot) for plot in some] for name, some in drawn.items()}
    blocks = page(summary, sheets(results), placed)
    texts = {
        "report.html": html(f"vtprune bench: {summary['model']['name']}", blocks, files),
        "report.md": markdown(blocks),
        "summary.json": json.dumps(summary, indent=1, allow_nan=False) + "\n",
    }
    files = {**{name: text.encode("utf-8") for name, text in texts.items()}, **files}
    return [_write((out or folder) / name, content) for name, content in files.items()]


def _in_folder(plot: Plot) -> Plot:
    return replace(plot, file=f"{PLOTS}/{plot.file}")


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
