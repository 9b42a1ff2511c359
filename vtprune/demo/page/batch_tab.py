"""The batch tab: questions of the embedded task, accuracy against visual tokens kept, while it is being counted."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vtprune.demo.batch import CHUNK, FEWEST, MOST, Tally, check_count, series, tallies
from vtprune.demo.engine import Engine
from vtprune.demo.page import words
from vtprune.demo.page.words import PROGRESS, told
from vtprune.draw.curve import curves
from vtprune.policies.base import POLICIES

FIRST_POLICIES = ("fastv", "random")
RATIOS = (0.05, 0.1, 0.25, 0.5, 0.75)
ABOUT = (
    f"Generated scenes that the small model was not trained on, one question each, {CHUNK} at a time. With few "
    "questions the bars are wide: believe a difference only where they do not overlap."
)


def batch_tab(engine: Engine) -> None:
    """The tab, inside a gr.Blocks."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            gr.Markdown(ABOUT)
            first = [name for name in FIRST_POLICIES if name in POLICIES]
            policies = gr.Dropdown(sorted(POLICIES), value=first, multiselect=True, label="Policies")
            ratios = gr.CheckboxGroup(list(RATIOS), value=[0.1, 0.25, 0.5], label="Keep ratios")
            n = gr.Slider(FEWEST, MOST, value=64, step=4, label="Questions", buttons=[])
            with gr.Row():
                go = gr.Button("Run", variant="primary", min_width=110)
                stop = gr.Button("Stop", min_width=80)
        with gr.Column(scale=3, min_width=320):
            line = gr.HTML(words.empty("Run, and the plot grows here."))
            plot = gr.Image(
                label="Accuracy against visual tokens kept",
                alt_text="Plot",
                format="png",
                interactive=False,
                buttons=["download"],
            )
            table = gr.HTML()

    def run(names: list[str], ratios: list[float], n: float, progress: gr.Progress = PROGRESS) -> Iterator[list[Any]]:
        """The plot so far, after every few questions."""
        with told():
            total = check_count(n)
            progress((0, total), "asking")
            for counts in tallies(engine, total, names, ratios):
                progress((counts[0].asked, total), f"{counts[0].asked} of {total} questions")
                said = words.line(f"{counts[0].asked} of {total} questions{'.' if counts[0].asked == total else ' …'}")
                yield [said, _plot(counts), _table(counts)]

    going = go.click(
        run,
        [policies, ratios, n],
        [line, plot, table],
        api_name="batch",
        concurrency_id="long",
        concurrency_limit=2,
        show_progress="minimal",
    )
    stop.click(lambda: words.line("Stopped."), None, line, cancels=[going], queue=False, api_name="batch_stop")


def _plot(counts: list[Tally]) -> gr.Image:
    spoken = "; ".join(f"{row[0]} at {row[1]}: {row[3]} right" for row in _rows(counts))
    return gr.Image(value=curves(*series(counts)), alt_text=f"Accuracy against visual tokens kept. {spoken}")


def _rows(counts: list[Tally]) -> list[tuple[str, ...]]:
    return [
        (
            tally.policy,
            "-" if tally.keep_ratio is None else f"{tally.keep_ratio:g}",
            f"{tally.tokens / tally.asked:.1f}",
            f"{tally.right} of {tally.asked}",
            f"{100 * tally.point.low:.0f} to {100 * tally.point.high:.0f} %",
        )
        for tally in counts
        if tally.asked
    ]


def _table(counts: list[Tally]) -> str:
    return words.table(("policy", "keep ratio", "visual tokens", "right", "interval of 95 %"), _rows(counts))
