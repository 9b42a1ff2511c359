"""The plots of a report, drawn and written as PNG files."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vtprune.bench.plot_cost import plot_cost
from vtprune.bench.plot_labels import plot_labels
from vtprune.bench.plot_tokens import plot_tokens

DPI = 130


@dataclass(frozen=True)
class Plot:
    """A drawn plot. label: what it breaks down by, of heat maps. png: the bytes of its file."""

    file: str
    words: str
    png: bytes
    label: str | None = None


def draw(name: str, task: Mapping[str, Any], number: int = 0) -> Iterator[Plot]:
    """The plots of one task; those for which nothing was measured are left out. number: of the task, for file names.

    Raises ImportError where matplotlib is not installed.
    """
    start = f"{number}-{file_name(name)}"
    words = f"{name}: scores over the share of visual tokens that a layer sees; the grey band is that of random tokens"
    yield from _plot(f"{start}-tokens.png", words, plot_tokens(name, task))
    words = (
        f"{name}: scores over visual tokens, and over the time to the first token where it was measured, with the front"
    )
    yield from _plot(f"{start}-cost.png", words, plot_cost(name, task))
    labels = dict.fromkeys(label for row in task["rows"].values() for label in row.get("labels", {}))
    for i, label in enumerate(labels):
        words = f"{name}: points above or below the full model by {label}; bold where the interval leaves out zero"
        figure = plot_labels(name, task, label)
        yield from _plot(f"{start}-{i}-{file_name(label)}.png", words, figure, label)


def _plot(file: str, words: str, figure: Any, label: str | None = None) -> Iterator[Plot]:
    if figure is not None:
        png = io.BytesIO()
        # no date and no version: the same rows make the same file
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        yield Plot(file, words, png.getvalue(), label)


def file_name(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60]
