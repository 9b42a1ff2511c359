"""Which picture is asked about: an example, a new generated scene, or a file; and the question."""

import secrets
from dataclasses import dataclass
from typing import Any

import gradio as gr

from vtprune.demo.page.figures import figure
from vtprune.demo.page.words import html, told
from vtprune.demo.shown import BUNDLED, FIRST_SCENES, Shown, example_picture, uploaded_picture

FILE_HELP = "AVIF, BMP, GIF, JPEG, PNG, TIFF or WebP, up to 64 MB"

NEW_SCENES = 100_000
"""Of which one is chosen by chance; more can be had by their number."""


@dataclass(frozen=True)
class PictureBox:
    """The components. shown: the picture of this session. preview: of it, where it is not shown anyway."""

    shown: gr.State
    preview: gr.HTML
    example: gr.Dropdown
    new: gr.Button
    file: gr.File
    question: gr.Dropdown


def picture_box(*, preview: bool = False) -> PictureBox:
    """The components, showing the bundled picture."""
    first = example_picture(BUNDLED)
    names = [BUNDLED, *(f"scene {seed}" for seed in FIRST_SCENES)]
    with gr.Row(elem_classes="vt-pair"):
        example = gr.Dropdown(names, value=BUNDLED, label="Example", allow_custom_value=True, scale=2, min_width=130)
        new = gr.Button("New scene", size="md", scale=1, min_width=110)
    with gr.Accordion("Upload a picture", open=False):
        file = gr.File(label=FILE_HELP, file_count="single", type="filepath", height=120)
    small = html(thumbnail(first), visible=preview)
    question = gr.Dropdown(**question_settings(first))
    return PictureBox(gr.State(first), small, example, new, file, question)


def thumbnail(shown: Shown) -> str:
    """A small copy of the picture."""
    small = shown.visual.copy()
    small.thumbnail((280, 140))
    return figure(small.convert("RGB"), f"Chosen: {shown.name}", "")


def question_settings(shown: Shown) -> dict[str, Any]:
    """The questions that are known to fit; others can be typed."""
    texts = [text for text, _ in shown.questions]
    return {
        "choices": texts,
        "value": texts[0] if texts else "How many objects are there?",
        "label": "Question",
        "info": "choose one, or type your own",
        "allow_custom_value": True,
    }


def connect(box: PictureBox, prefix: str) -> None:
    """The events of the box; whoever wants to follow them listens to ``box.shown.change``. prefix: of API names."""

    def found(shown: Shown) -> tuple[Any, ...]:
        some = shown, gr.Dropdown(**question_settings(shown))
        return (*some, thumbnail(shown)) if box.preview.visible else some

    def choose(name: str) -> tuple[Any, ...]:
        """An example by its name: "bundled", or "scene 3"."""
        with told():
            return found(example_picture(name))

    def new() -> tuple[Any, ...]:
        """A scene that nobody has seen."""
        name = f"scene {secrets.randbelow(NEW_SCENES)}"
        return *found(example_picture(name)), name

    def load(path: str | None) -> tuple[Any, ...]:
        """A picture from a file."""
        with told():
            return found(uploaded_picture(path))

    outputs = [box.shown, box.question, *([box.preview] if box.preview.visible else [])]
    quiet = {"show_progress": "hidden"}
    box.example.input(choose, box.example, outputs, api_name=f"{prefix}_example", **quiet)
    box.new.click(new, None, [*outputs, box.example], api_name=f"{prefix}_new", **quiet)
    box.file.upload(load, box.file, outputs, api_name=f"{prefix}_load", **quiet)
