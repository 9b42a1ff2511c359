"""The video tab: a clip over time, what of each frame was kept, both answers, and what as many tokens buy otherwise."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from vtprune.demo.clip_study import ClipAnswered, Stage, answer_clip
from vtprune.demo.controls import read_options, read_policy
from vtprune.demo.engine import Engine
from vtprune.demo.page import policy_box as policies_of
from vtprune.demo.page import words
from vtprune.demo.page.picture_box import question_settings
from vtprune.demo.page.words import PROGRESS, told
from vtprune.demo.shown import (
    BUNDLED,
    FIRST_CLIPS,
    MAX_FRAMES,
    Shown,
    check_frames,
    example_clip,
    uploaded_clip,
    with_frames,
)

FRAMES = 32
STOPPED = "Stopped."


@dataclass(frozen=True)
class ClipBox:
    """Which clip is asked about. shown: the clip of this session."""

    shown: gr.State
    example: gr.Dropdown
    file: gr.File
    frames: gr.Slider
    question: gr.Dropdown


@dataclass(frozen=True)
class View:
    """Where results are shown."""

    line: gr.HTML
    answers: gr.HTML
    sheet: gr.Image
    bars: gr.Image
    budget: gr.HTML

    @property
    def all(self) -> list[Any]:
        return [self.line, self.answers, self.sheet, self.bars, self.budget]


def video_tab(engine: Engine) -> None:
    """The tab, inside a gr.Blocks."""
    model = engine.names["video"]
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            clip = _clip_box()
            policy = policies_of.policy_box(model, "framefusion", 0.25)
            more = gr.Checkbox(True, label="Same budget", info="as many visual tokens spent on fewer or more frames")
            with gr.Row():
                ask = gr.Button("Ask both", variant="primary", min_width=110)
                stop = gr.Button("Stop", min_width=80)
        with gr.Column(scale=3, min_width=320):
            view = _view()
    _clip_events(clip)
    policies_of.connect(policy, model, "video")
    _ask_events(engine, clip, policy, more, ask, stop, view)


def _clip_box() -> ClipBox:
    first = example_clip(BUNDLED, FRAMES)
    names = [BUNDLED, *(f"clip {seed}" for seed in FIRST_CLIPS)]
    example = gr.Dropdown(
        names, value=BUNDLED, label="Example", info="or another number: clip 1234", allow_custom_value=True
    )
    with gr.Accordion("Your own clip (video or animation, up to 64 MB and 20 minutes)", open=False):
        file = gr.File(label="Clip file", file_count="single", type="filepath", height=110)
    frames = gr.Slider(4, MAX_FRAMES, value=FRAMES, step=2, label="Frames", info="spread evenly", buttons=[])
    question = gr.Dropdown(**question_settings(first))
    return ClipBox(gr.State(first), example, file, frames, question)


def _view() -> View:
    line = gr.HTML(words.empty("Ask, and both answers appear here with the clip over time."))
    answers = gr.HTML()
    sheet = gr.Image(
        label="The clip over time",
        alt_text="Contact sheet",
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
    )
    bars = gr.Image(
        label="Budget of each step",
        alt_text="Visual tokens by step",
        format="png",
        interactive=False,
        buttons=["download"],
    )
    return View(line, answers, sheet, bars, gr.HTML())


def _clip_events(box: ClipBox) -> None:
    def choose(name: str, frames: float) -> tuple[Any, ...]:
        """An example by its name: "bundled", or "clip 7"."""
        with told():
            shown = example_clip(name, check_frames(frames))
            return shown, gr.Dropdown(**question_settings(shown))

    def load(path: str | None, frames: float) -> tuple[Any, ...]:
        """A clip from a file."""
        with told():
            shown = uploaded_clip(path, check_frames(frames))
            return shown, gr.Dropdown(**question_settings(shown))

    found = [box.shown, box.question]
    box.example.input(choose, [box.example, box.frames], found, api_name="video_example")
    reading = {"concurrency_id": "reading", "concurrency_limit": 2, "time_limit": None}
    box.file.upload(load, [box.file, box.frames], found, api_name="video_load", **reading)


def _ask_events(
    engine: Engine, clip: ClipBox, policy: Any, more: gr.Checkbox, ask: gr.Button, stop: gr.Button, view: View
) -> None:
    def run(
        shown: Shown,
        frames: float,
        question: str,
        name: str,
        ratio: float,
        options: str,
        more: bool,
        progress: gr.Progress = PROGRESS,
    ) -> Iterator[list[Any]]:
        """Both answers, the clip over time, and what else as many visual tokens buy."""
        with told():
            wanted = read_policy(name, ratio, options)
            film = with_frames(shown, frames)
            texts = read_options(name, options)
            for found in answer_clip(engine, film, question, name, wanted, options=texts, more_frames=more):
                if isinstance(found, Stage):
                    progress(found.share, found.what)
                    yield [words.line(f"{found.what} …"), *[gr.skip()] * 4]
                else:
                    yield _results(found)

    given = [clip.shown, clip.frames, clip.question, policy.policy, policy.ratio, policy.options, more]
    asking = ask.click(
        run, given, view.all, api_name="video_ask", concurrency_id="model", concurrency_limit=2, show_progress="minimal"
    )
    stop.click(lambda: words.line(STOPPED), None, view.line, cancels=[asking], queue=False, api_name="video_stop")


def _results(found: ClipAnswered) -> list[Any]:
    pruned, steps = found.values["pruned"], found.values["steps"]
    said = f"Kept {pruned['visual_tokens']:,} of {pruned['visual_tokens_before']:,} visual tokens."
    counts = ", ".join(str(one["kept"]) for one in steps)
    merged = sum(one["merged"] for one in steps)
    said += f" {merged:,} more were merged into them." if merged else ""
    spoken = f"{said} Kept by step: {counts}."
    return [
        words.line(said),
        words.answers(found.values),
        gr.Image(value=found.sheet, alt_text=f"The clip over time. {spoken}", visible=found.sheet is not None),
        gr.Image(value=found.bars, alt_text=f"Bars by step. {spoken}", visible=found.bars is not None),
        words.same_budget(found.values.get("same_budget")),
    ]
