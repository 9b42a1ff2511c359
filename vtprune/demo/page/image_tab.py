"""The image tab: a picture, a question, a policy; what was kept, at which site, and what that changed."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from vtprune.cli.error import UserError
from vtprune.demo.controls import read_options, read_policy
from vtprune.demo.engine import Engine
from vtprune.demo.page import picture_box as pictures_of
from vtprune.demo.page import policy_box as policies_of
from vtprune.demo.page import words
from vtprune.demo.page.picture_box import PictureBox
from vtprune.demo.page.policy_box import PolicyBox
from vtprune.demo.page.words import PROGRESS, told
from vtprune.demo.pictures import Pictures, by_site, cell_of, check_cell, pictures, story, summary
from vtprune.demo.shown import Shown
from vtprune.demo.study import Answered, answer, read_study, reselect
from vtprune.demo.trace import Trace

KEEP = 3_600
"""Seconds that a session without events is remembered."""

NOT_YET = "ask a question first: there is nothing to look at yet"
INSPECT = "Click a cell of a picture, or name its row and column, to see its score, its rank, and where it was dropped."


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
    answers: gr.HTML
    sites: gr.Gallery
    story: gr.HTML

    @property
    def drawings(self) -> list[Any]:
        return [self.line, self.original, self.heat, self.kept, self.scale, self.sites]


def image_tab(engine: Engine) -> dict[str, Any]:
    """The tab, inside a gr.Blocks; returns the event that asks, for the page to begin with."""
    model = engine.names["image"]
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            picture = pictures_of.picture_box()
            policy = policies_of.policy_box(model, "fastv", 0.25)
            ask = gr.Button("Ask both", variant="primary")
        with gr.Column(scale=3, min_width=320):
            view = _view()
            with gr.Accordion("One visual token", open=True):
                with gr.Row():
                    row = gr.Number(1, label="Row", minimum=1, precision=0, min_width=90)
                    column = gr.Number(1, label="Column", minimum=1, precision=0, min_width=90)
                    look = gr.Button("Inspect", min_width=90)
                view.story.render()
    first = _ask_events(engine, picture, policy, ask, view)
    selecting = _look_events(engine, policy, view)
    # letting go of the slider asks; what is still being selected from the scores of before is not wanted any more
    more = {"api_name": "image_ask_after_ratio", "api_visibility": "undocumented", "cancels": [selecting]}
    policy.ratio.release(**first, **more)
    _inspect_events(view, row, column, look)
    return first


def _view() -> View:
    line = gr.HTML(words.empty("Ask, and both answers appear here."))
    with gr.Row():
        names = ("What the model sees", "Scores", "What was kept")
        found = [
            gr.Image(label=name, alt_text=name, format="png", interactive=False, buttons=["download"], min_width=200)
            for name in names
        ]
    scale, answers = gr.HTML(), gr.HTML()
    sites = gr.Gallery(label="Which tokens survive to which layer", columns=3, format="png", visible=False, height=320)
    told_of = gr.HTML(words.line(INSPECT), render=False)
    return View(gr.State(time_to_live=KEEP), gr.State(time_to_live=KEEP), line, *found, scale, answers, sites, told_of)


# ---- asking


def _ask_events(engine: Engine, picture: PictureBox, policy: PolicyBox, ask: gr.Button, view: View) -> dict[str, Any]:
    def run(
        shown: Shown, question: str, name: str, ratio: float, options: str, progress: gr.Progress = PROGRESS
    ) -> list[Any]:
        """Both answers, their costs, and drawings of what was kept."""
        with told():
            progress(0.1, "answering")
            with engine.use("image") as loaded:
                wanted = read_policy(name, ratio, options)
                found = answer(loaded, read_study(loaded, shown, question), name, wanted)
            progress(0.8, "drawing")
            drawn = draw(found, found.trace)
            return [found, found.trace, *drawn, words.answers(found.values), words.line(INSPECT)]

    given = [picture.shown, picture.question, policy.policy, policy.ratio, policy.options]
    shown = [view.answered, view.trace, *view.drawings, view.answers, view.story]
    same = {"fn": run, "inputs": given, "outputs": shown, "concurrency_id": "model", "concurrency_limit": 2}
    ask.click(**same, api_name="image_ask")
    picture.question.select(**same, api_name="image_ask_after_question", api_visibility="undocumented")
    chosen = [*pictures_of.connect(picture, "image"), policies_of.connect(policy, engine.names["image"], "image")]
    for number, event in enumerate(chosen):
        event.success(**same, api_name=f"image_ask_after_choice_{number}", api_visibility="undocumented")
    return same


def draw(answered: Answered, trace: Trace, ring: tuple[int, int] | None = None) -> list[Any]:
    """What the components of ``View.drawings`` show."""
    found, sites = pictures(answered, trace, ring), by_site(answered, trace) if len(trace.stops) > 1 else []
    said = summary(trace)
    scale = words.scale(found.low, found.high, found.what) if found.heat else words.line(found.why)
    gallery = gr.Gallery(value=sites, visible=bool(sites))
    return [words.line(said), *_images(found, said), scale, gallery]


def _images(found: Pictures, said: str) -> list[Any]:
    what = f"Scores of the visual tokens: {found.what}" if found.heat else "No scores"
    return [
        gr.Image(value=found.original, alt_text="The picture as the model sees it"),
        gr.Image(value=found.heat, alt_text=what, visible=found.heat is not None),
        gr.Image(value=found.kept, alt_text=f"{said} Dropped cells are dim and grey, merged groups outlined."),
    ]


# ---- another ratio


def _look_events(engine: Engine, policy: PolicyBox, view: View) -> Any:
    def select(answered: Answered | None, name: str, ratio: float, options: str) -> list[Any]:
        """What another keep ratio keeps, from cached scores; the answers stay those of the last question."""
        with told():
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
                below = f"{summary(trace)} The answers below are those of keep ratio {asked:g}."
                line = words.line(below, stale=True)
            return [trace, line, heat, kept, scale, sites]

    return policy.ratio.input(
        select,
        [view.answered, policy.policy, policy.ratio, policy.options],
        [view.trace, view.line, view.heat, view.kept, view.scale, view.sites],
        api_name="image_reselect",
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=4,
    )


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
