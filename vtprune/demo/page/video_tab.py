"""The video tab: a clip over time, what of each frame was kept, both answers, and what as many tokens buy otherwise."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vtprune.demo.clip_study import ClipAnswered, answer_clip
from vtprune.demo.controls import read_options, read_policy
from vtprune.demo.engine import Engine
from vtprune.demo.page import figures, stopping, words
from vtprune.demo.page import policy_box as policies_of
from vtprune.demo.page.answers import answers, same_budget
from vtprune.demo.page.picture_box import question_settings
from vtprune.demo.page.policy_box import PolicyBox
from vtprune.demo.page.words import told
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
from vtprune.demo.study import Stage

FRAMES = 32
PREVIEW = 6
"""Frames of a clip that are shown before it is asked about."""


@dataclass(frozen=True)
class ClipBox:
    """Which clip is asked about. shown: the clip of this session."""

    shown: gr.State
    preview: gr.HTML
    example: gr.Dropdown
    file: gr.File
    frames: gr.Slider
    question: gr.Dropdown


@dataclass(frozen=True)
class View:
    """Where results are shown."""

    line: gr.HTML
    answers: gr.HTML
    clip: gr.HTML
    sheet: gr.DownloadButton
    budget: gr.HTML

    @property
    def all(self) -> list[Any]:
        return [self.line, self.answers, self.clip, self.sheet, self.budget]


def video_tab(engine: Engine) -> None:
    """The tab, inside a gr.Blocks."""
    model = engine.names["video"]
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            clip = _clip_box()
            more = gr.Checkbox(True, label="Same budget", info="as many visual tokens spent on fewer or more frames")
            ask = gr.Button("Ask", variant="primary", scale=2, min_width=110, render=False)
            stop = stopping.stop_button(render=False)
            policy = policies_of.policy_box(model, "framefusion", 0.25, [ask, stop])
        with gr.Column(scale=3, min_width=320):
            view = View(
                words.html(words.empty("Ask, and both answers appear here with the clip over time."), min_height=36),
                words.html(),
                words.html(),
                gr.DownloadButton("Download as one picture", size="md", visible=False, elem_classes="vt-small"),
                words.html(),
            )
    _clip_events(clip, view)
    policies_of.connect(policy, model, "video")
    stopping.connect(stop, [ask.click], partial(_ask_event, engine, clip, policy, more, view), view.line, "video")


def _clip_box() -> ClipBox:
    first = example_clip(BUNDLED, FRAMES)
    names = [BUNDLED, *(f"clip {seed}" for seed in FIRST_CLIPS)]
    example = gr.Dropdown(
        names, value=BUNDLED, label="Example", info="or another number: clip 1234", allow_custom_value=True
    )
    with gr.Accordion("Upload a clip", open=False):
        file = gr.File(
            label="Video or animation, up to 64 MB, 20 minutes", file_count="single", type="filepath", height=120
        )
    preview = words.html(_preview(first))
    frames = gr.Slider(4, MAX_FRAMES, value=FRAMES, step=2, label="Frames", info="spread evenly", buttons=[])
    question = gr.Dropdown(**question_settings(first))
    return ClipBox(gr.State(first), preview, example, file, frames, question)


def _preview(shown: Shown) -> str:
    """Some frames of the clip, in time order."""
    pixels = shown.visual.pixels
    some = [pixels[round(i * (len(pixels) - 1) / (PREVIEW - 1))] for i in range(PREVIEW)]
    small = []
    for frame in some:
        picture = Image.fromarray(frame)
        picture.thumbnail((96, 96))
        small.append(figures.figure(picture, f"A frame of {shown.name}", ""))
    return figures.figures(small, "strip")


def _clip_events(box: ClipBox, view: View) -> None:
    def found(shown: Shown) -> tuple[Any, ...]:
        return shown, _preview(shown), gr.Dropdown(**question_settings(shown))

    def choose(name: str, frames: float) -> tuple[Any, ...]:
        """An example by its name: "bundled", or "clip 7"."""
        with told():
            return found(example_clip(name, check_frames(frames)))

    def load(path: str | None, frames: float) -> tuple[Any, ...]:
        """A clip from a file."""
        with told():
            return found(uploaded_clip(path, check_frames(frames)))

    outputs, quiet = [box.shown, box.preview, box.question], {"show_progress": "hidden"}
    box.example.input(choose, [box.example, box.frames], outputs, api_name="video_example", **quiet)
    reading = {"concurrency_id": "reading", "concurrency_limit": 2}
    box.file.upload(load, [box.file, box.frames], outputs, api_name="video_load", **reading, **quiet)
    stale = words.line("This is another clip: Ask shows what is kept of it.", stale=True)
    more = {"queue": False, "api_visibility": "undocumented", "show_progress": "hidden"}
    box.shown.change(lambda: stale, None, view.line, api_name="video_changed", **more)


def _ask_event(
    engine: Engine, clip: ClipBox, policy: PolicyBox, more: gr.Checkbox, view: View, triggers: Sequence[Any]
) -> Any:
    def steps(
        shown: Shown, frames: float, question: str, name: str, ratio: float, options: str, more: bool
    ) -> Iterator[list[Any]]:
        wanted, texts = read_policy(name, ratio, options), read_options(name, options)
        yield [words.progress(0, "reading the clip"), *[gr.skip()] * 4]
        film = with_frames(shown, frames)
        for found in answer_clip(engine, film, question, name, wanted, options=texts, more_frames=more):
            if isinstance(found, Stage):
                yield [words.progress(found.share, found.what), *[gr.skip()] * 4]
            else:
                # the page serves a copy of the file
                with tempfile.TemporaryDirectory(prefix="vtprune_demo_") as folder:
                    yield _results(found, folder)

    def run(
        shown: Shown, frames: float, question: str, name: str, ratio: float, options: str, more: bool
    ) -> Iterator[list[Any]]:
        """Both answers, the clip over time, and what else as many visual tokens buy."""
        yield from words.explained(steps(shown, frames, question, name, ratio, options, more), 5, 0)

    given = [clip.shown, clip.frames, clip.question, policy.policy, policy.ratio, policy.options, more]
    work = {"concurrency_id": "model", "concurrency_limit": 2, "show_progress": "hidden"}
    return gr.on(triggers, run, given, view.all, api_name="video_ask", **work)


def _results(found: ClipAnswered, folder: str) -> list[Any]:
    pruned, drawn = found.values["pruned"], found.drawn
    said = f"Kept {pruned['visual_tokens']:,} of {pruned['visual_tokens_before']:,} visual tokens."
    merged = sum(one["merged"] for one in found.values["steps"])
    said += f" {merged:,} more were merged into them." if merged else ""
    sheet, clip = gr.DownloadButton(visible=False), ""
    if drawn is not None:
        path, clip = Path(folder, "vtprune_clip.png"), figures.clip_over_time(drawn)
        drawn.sheet.save(path)
        sheet = gr.DownloadButton(value=str(path), visible=True)
    budget = same_budget(found.values.get("same_budget"))
    titled = words.heading("The same budget, spent on other numbers of frames") + budget if budget else ""
    return [words.line(said), answers(found.values), clip, sheet, titled]
