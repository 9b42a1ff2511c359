"""The image tab: a picture, a question, a policy; what was kept, at which site, and what that changed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from vtprune.cli.error import UserError, one_line
from vtprune.demo.controls import read_options, read_policy
from vtprune.demo.engine import Engine
from vtprune.demo.page import figures, stopping, words
from vtprune.demo.page import picture_box as pictures_of
from vtprune.demo.page import policy_box as policies_of
from vtprune.demo.page.answers import answers
from vtprune.demo.page.picture_box import PictureBox
from vtprune.demo.page.policy_box import PolicyBox
from vtprune.demo.page.words import MISTAKES, told
from vtprune.demo.pictures import Pictures, by_site, cell_of, check_cell, pictures, story, summary
from vtprune.demo.shown import Shown
from vtprune.demo.study import Answered, Stage, answering, read_study, reselect
from vtprune.demo.trace import Trace

KEEP = 3_600
"""Seconds that a session without events is remembered."""

NOT_YET = "ask a question first: there is nothing to look at yet"
INSPECT = "Click a cell of a picture, or name its row and column: its score, its rank, and where it was dropped."
KEYS = (
    '<div class="vt-keys"><span><i class="kept-cell"></i>kept</span><span><i class="merged-cell"></i>merged</span>'
    '<span><i class="dropped-cell"></i>dropped</span></div>'
)


@dataclass(frozen=True)
class View:
    """Where results are shown."""

    answered: gr.State
    trace: gr.State
    line: gr.HTML
    original: gr.Image
    heat: gr.Image
    kept: gr.Image
    scale: gr.HTML
    sites: gr.HTML
    answers: gr.HTML
    story: gr.HTML

    @property
    def drawings(self) -> list[Any]:
        return [self.line, self.original, self.heat, self.kept, self.scale, self.sites]


def image_tab(engine: Engine, page: gr.Blocks) -> None:
    """The tab, inside the page, with whose opening it asks its first question."""
    model = engine.names["image"]
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            picture = pictures_of.picture_box()
            ask = gr.Button("Ask", variant="primary", scale=2, min_width=110, render=False)
            stop = stopping.stop_button(render=False)
            policy = policies_of.policy_box(model, "fastv", 0.25, [ask, stop])
        with gr.Column(scale=3, min_width=320):
            line = words.html(words.empty("Ask, and both answers appear here."), min_height=36)
            images, scale = _pictures()
            told_of, *place = _inspector()
            sites, both = words.html(visible=False), words.html()
    view = View(gr.State(time_to_live=KEEP), gr.State(time_to_live=KEEP), line, *images, scale, sites, both, told_of)
    pictures_of.connect(picture, "image")
    policies_of.connect(policy, model, "image")
    # a newcomer sees an answer before the first click; later every choice asks, the last one if there are several
    triggers = [ask.click, picture.question.input, policy.ratio.release]
    triggers += [picture.shown.change, policy.chosen.change, page.load]
    stopping.connect(stop, triggers, partial(_ask_event, engine, picture, policy, view), line, "image")
    _look_events(engine, policy, view)
    _inspect_events(view, *place)


def _pictures() -> tuple[list[gr.Image], gr.HTML]:
    """The three pictures side by side, each below its title, and what the colours of the second mean."""
    found, below = [], []
    with gr.Row(elem_classes="vt-trio"):
        for name, under, width in (
            ("The model sees", words.note("Each cell is one visual token."), 150),
            ("Scores", "", 150),
            ("What was kept", KEYS, 180),
        ):
            with gr.Column(min_width=width):
                words.html(words.heading(name))
                picture = gr.Image(alt_text=name, show_label=False, format="png", interactive=False, buttons=[])
                found.append(picture)
                below.append(words.html(under))
    return found, below[1]


def _inspector() -> tuple[gr.HTML, gr.Number, gr.Number, gr.Button]:
    """The story of one token, and where to name it by keyboard."""
    with gr.Row(elem_classes="vt-inspect"):
        told_of = words.html(words.line(INSPECT))
        with gr.Column(scale=0, min_width=290):
            with gr.Row():
                row = gr.Number(1, label="Row", minimum=1, precision=0, min_width=70)
                column = gr.Number(1, label="Column", minimum=1, precision=0, min_width=70)
                look = gr.Button("Inspect", size="md", min_width=90)
    return told_of, row, column, look


# ---- asking


def _ask_event(engine: Engine, picture: PictureBox, policy: PolicyBox, view: View, triggers: Sequence[Any]) -> Any:
    shown = [view.answered, view.trace, *view.drawings, view.answers, view.story]
    quiet = [gr.skip()] * (len(shown) - 3)

    def steps(shown: Shown, question: str, name: str, ratio: float, options: str) -> Iterator[list[Any]]:
        wanted, drawn, said = read_policy(name, ratio, options), None, ""
        with engine.use("image") as loaded:
            study = read_study(loaded, shown, question)
        for found in answering(partial(engine.use, "image"), study, name, wanted):
            if isinstance(found, Stage):
                yield [gr.skip(), gr.skip(), words.progress(found.share, found.what, said), *quiet]
                continue
            first, drawn = drawn is None, drawn or draw(found, found.trace)
            said = summary(found.trace)
            done = bool(found.values["runs"])
            told_of = words.line(INSPECT) if first else gr.skip()
            drawings = drawn if first or done else [gr.skip()] * len(drawn)
            yield [found, found.trace, *drawings, answers(found.values, busy=not done), told_of]

    def run(shown: Shown, question: str, name: str, ratio: float, options: str) -> Iterator[list[Any]]:
        """What was kept, then both answers, then their costs."""
        yield from words.explained(steps(shown, question, name, ratio, options), 10, 2)

    given = [picture.shown, picture.question, policy.policy, policy.ratio, policy.options]
    return gr.on(
        triggers,
        run,
        given,
        shown,
        api_name="image_ask",
        concurrency_id="model",
        concurrency_limit=2,
        show_progress="hidden",
        trigger_mode="always_last",
    )


def draw(answered: Answered, trace: Trace, ring: tuple[int, int] | None = None) -> list[Any]:
    """What the components of ``View.drawings`` show."""
    found, after = pictures(answered, trace, ring), by_site(answered, trace) if len(trace.stops) > 1 else []
    said = summary(trace)
    what = f"{answered.values['policy']['name']}: {found.what}; yellow is high"
    scale = words.scale(found.low, found.high, what) if found.heat else words.note(found.why)
    return [words.line(said), *_images(found, said), scale, gr.HTML(figures.sites(after), visible=bool(after))]


def _images(found: Pictures, said: str) -> list[Any]:
    what = f"Scores of the visual tokens: {found.what}" if found.heat else "No scores"
    return [
        gr.Image(value=found.original, alt_text="The picture as the model sees it"),
        gr.Image(value=found.heat, alt_text=what, visible=found.heat is not None),
        gr.Image(
            value=found.kept,
            alt_text=f"{said} Dropped cells are dim and grey, merged groups outlined.",
            visible=found.kept is not None,
        ),
    ]


# ---- another ratio


def _look_events(engine: Engine, policy: PolicyBox, view: View) -> Any:
    def select(answered: Answered | None, name: str, ratio: float, options: str) -> list[Any]:
        """What another keep ratio keeps, from cached scores; the answers stay those of the last question."""
        try:
            return _selected(engine, answered, name, ratio, options)
        except MISTAKES as error:
            # a slider that is being moved would fill the page with messages
            return [gr.skip(), words.line(one_line(error), stale=True), *[gr.skip()] * 4]

    return policy.ratio.input(
        select,
        [view.answered, policy.policy, policy.ratio, policy.options],
        [view.trace, view.line, view.heat, view.kept, view.scale, view.sites],
        api_name="image_reselect",
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=4,
    )


def _selected(engine: Engine, answered: Answered | None, name: str, ratio: float, options: str) -> list[Any]:
    _check_answered(answered)
    _check_same(answered, name, options)
    read_policy(name, ratio, options)
    trace = reselect(engine, answered, ratio)
    line, _, heat, kept, scale, sites = draw(answered, trace)
    if len(trace.stops) == 1:
        # the scores are what they were
        heat = scale = gr.skip()
    asked = getattr(answered.trace.policy, "keep_ratio", None)
    if asked is not None and asked != ratio:
        line = words.line(f"{summary(trace)} The answers are those of keep ratio {asked:g}: press Ask.", stale=True)
    return [trace, line, heat, kept, scale, sites]


def _check_answered(answered: Answered | None) -> None:
    if answered is None:
        raise UserError(NOT_YET)


def _check_same(answered: Answered, name: str, options: str) -> None:
    """Scores are those of one policy and its options; others have others."""
    asked = answered.values["policy"]["name"]
    if name != asked:
        raise UserError(f"the scores are those of {asked}; ask {name} first")
    read_options(name, options)


# ---- one token


def _inspect_events(view: View, row: gr.Number, column: gr.Number, look: gr.Button) -> None:
    def inspect(answered: Answered | None, trace: Trace | None, row: float, column: float) -> list[Any]:
        """Score, rank and fate of the token in a row and column, counted from 1."""
        with told():
            _check_answered(answered)
            cell = check_cell(trace, row, column)
            return [_story(trace, cell), *_images(pictures(answered, trace, cell), summary(trace))]

    def clicked(which: str):
        def click(answered: Answered | None, trace: Trace | None, event: gr.SelectData) -> list[Any]:
            """The same for the cell under a click."""
            with told():
                _check_answered(answered)
                found = pictures(answered, trace)
                size = getattr(found, which).size
                if which == "kept" and len(trace.row.sources[0].grids) > 1:
                    # beside it stands the thumbnail
                    size = found.original.size
                cell = cell_of(size, trace, *event.index)
                drawn = _images(pictures(answered, trace, cell), summary(trace))
                return [_story(trace, cell), *drawn, cell[0] + 1, cell[1] + 1]

        return click

    shown = [view.story, view.original, view.heat, view.kept]
    given = [view.answered, view.trace]
    look.click(inspect, [*given, row, column], shown, api_name="image_inspect", show_progress="hidden")
    for which in ("original", "heat", "kept"):
        picture = getattr(view, which)
        more = {"api_name": f"image_click_{which}", "api_visibility": "undocumented", "show_progress": "hidden"}
        picture.select(clicked(which), given, [*shown, row, column], **more)


def _story(trace: Trace, cell: tuple[int, int]) -> str:
    return "".join(words.line(text) for text in story(trace, *cell))
