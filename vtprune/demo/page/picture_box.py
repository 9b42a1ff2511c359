"""Which picture is asked about: an example, a new generated scene, or a file; and the question."""

import secrets
from dataclasses import dataclass
from typing import Any

import gradio as gr

from vtprune.demo.page.words import told
from vtprune.demo.shown import BUNDLED, FIRST_SCENES, MAX_SEED, Shown, example_picture, uploaded_picture

FILE_HELP = "AVIF, BMP, GIF, JPEG, PNG, TIFF or WebP, up to 64 MB"


@dataclass(frozen=True)
class PictureBox:
    """The components. shown: the picture of this session."""

    shown: gr.State
    example: gr.Dropdown
    new: gr.Button
    file: gr.File
    question: gr.Dropdown


def picture_box() -> PictureBox:
    """The components, showing the bundled picture."""
    first = example_picture(BUNDLED)
    names = [BUNDLED, *(f"scene {seed}" for seed in FIRST_SCENES)]
    with gr.Row():
        example = gr.Dropdown(names, value=BUNDLED, label="Example", allow_custom_value=True, scale=2, min_width=140)
        new = gr.Button("New scene", scale=1, min_width=110)
    with gr.Accordion(f"Your own picture ({FILE_HELP})", open=False):
        file = gr.File(label="Picture file", file_count="single", type="filepath", height=110)
    question = gr.Dropdown(**question_settings(first))
    return PictureBox(gr.State(first), example, new, file, question)


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


def connect(box: PictureBox, prefix: str) -> list[Any]:
    """The events of the box, which others may follow. prefix: of API names."""

    def choose(name: str) -> tuple[Any, ...]:
        """An example by its name: "bundled", or "scene 3"."""
        with told():
            shown = example_picture(name)
            return shown, gr.Dropdown(**question_settings(shown))

    def new() -> tuple[Any, ...]:
        """A scene that nobody has seen."""
        name = f"scene {secrets.randbelow(MAX_SEED)}"
        shown = example_picture(name)
        return shown, gr.Dropdown(**question_settings(shown)), name

    def load(path: str | None) -> tuple[Any, ...]:
        """A picture from a file."""
        with told():
            shown = uploaded_picture(path)
            return shown, gr.Dropdown(**question_settings(shown))

    found = [box.shown, box.question]
    return [
        box.example.input(choose, box.example, found, api_name=f"{prefix}_example"),
        box.new.click(new, None, [*found, box.example], api_name=f"{prefix}_new"),
        box.file.upload(load, box.file, found, api_name=f"{prefix}_load"),
    ]
