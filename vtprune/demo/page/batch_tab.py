"""The batch tab: questions of the embedded task, accuracy against visual tokens kept, while it is being counted."""

from collections.abc import Iterator
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from vtprune.demo.batch import CHUNK, FEWEST, MOST, WHOLE, Tally, check_count, series, tallies
from vtprune.demo.engine import Engine
from vtprune.demo.page import stopping, words
from vtprune.draw.curve import curves, swatch
from vtprune.policies.base import pruning_policies

FIRST_POLICIES = ("fastv", "random")
RATIOS = (0.05, 0.1, 0.25, 0.5, 0.75)
ABOUT = (
    f"Generated scenes that the small model was not trained on, one question each, {CHUNK} at a time. With few "
    "questions the bars are wide: believe a difference only where they do not overlap."
)
WIDE, NARROW = (860, 400), (350, 330)
"""Sizes of the plot, of which the page shows the one that fits."""


def batch_tab(engine: Engine) -> None:
    """The tab, inside a gr.Blocks."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            words.html(words.note(ABOUT))
            first = [name for name in FIRST_POLICIES if name in pruning_policies()]
            policies = gr.Dropdown(pruning_policies(), value=first, multiselect=True, label="Policies")
            ratios = gr.CheckboxGroup(list(RATIOS), value=[0.1, 0.25, 0.5], label="Keep ratios")
            n = gr.Slider(FEWEST, MOST, value=64, step=4, label="Questions", buttons=[])
            with gr.Row():
                go = gr.Button("Run", variant="primary", scale=2, min_width=110)
                stop = stopping.stop_button()
        with gr.Column(scale=3, min_width=320):
            line = words.html(words.empty("Run, and the plot grows here."), min_height=36)
            plot = words.html()
            table = words.html()

    def steps(names: list[str], ratios: list[float], n: float) -> Iterator[list[Any]]:
        total = check_count(n)
        yield [words.progress(0, f"0 of {total} questions"), gr.skip(), gr.skip()]
        for counts in tallies(engine, total, names, ratios):
            done = counts[0].asked
            said = words.line(f"{total} of {total} questions.")
            if done < total:
                said = words.progress(done / total, f"{done} of {total} questions")
            yield [said, _plot(counts), _table(counts)]

    def run(names: list[str], ratios: list[float], n: float) -> Iterator[list[Any]]:
        """The plot so far, after every few questions."""
        yield from words.explained(steps(names, ratios, n), 3, 0)

    work = {"concurrency_id": "long", "concurrency_limit": 2, "show_progress": "hidden"}
    shown = [line, plot, table]
    going = partial(gr.on, fn=run, inputs=[policies, ratios, n], outputs=shown, api_name="batch", **work)
    stopping.connect(stop, [go.click], going, line, "batch")


def _plot(counts: list[Tally]) -> str:
    found, whole = series(counts)
    marks = [(-1, WHOLE), *enumerate(found)]
    keys = "".join(f"<span>{swatch(number)}{escape(name)}</span>" for number, name in marks)
    drawn = "".join(
        f'<div class="vt-plot {kind}">{curves(found, whole, size)}</div>'
        for kind, size in (("wide", WIDE), ("narrow", NARROW))
    )
    return words.heading("Accuracy against visual tokens kept") + f'<div class="vt-keys">{keys}</div>{drawn}'


def _rows(counts: list[Tally]) -> list[tuple[str, ...]]:
    return [
        (
            tally.policy if tally.keep_ratio is None else f"{tally.policy} {tally.keep_ratio:g}",
            f"{tally.tokens / tally.asked:.1f}",
            f"{tally.right} of {tally.asked}",
            f"{100 * tally.point.low:.0f} to {100 * tally.point.high:.0f} %",
        )
        for tally in counts
        if tally.asked
    ]


def _table(counts: list[Tally]) -> str:
    return words.table(("policy, keep ratio", "visual tokens", "right", "95 % interval"), _rows(counts))
