"""The compare tab: one picture, several policies and ratios, sorted by how near they are to the full model."""

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vtprune.cli.result import engineering
from vtprune.demo.engine import Engine
from vtprune.demo.grid import Cell, compare, draw_grid, plain_cells
from vtprune.demo.page import figures, stopping, words
from vtprune.demo.page import picture_box as pictures_of
from vtprune.demo.shown import Shown
from vtprune.policies.base import pruning_policies

FIRST_POLICIES = ("fastv", "idpruner", "pool", "random")
RATIOS = (0.1, 0.25, 0.5, 0.75)
COLUMNS = ("what it costs", "visual tokens", "KV cache, bytes", "FLOPs")
WIDTH = 240
"""Pixels of a picture in the grid."""


def compare_tab(engine: Engine) -> None:
    """The tab, inside a gr.Blocks."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            picture = pictures_of.picture_box(preview=True)
            first = [name for name in FIRST_POLICIES if name in pruning_policies()]
            policies = gr.Dropdown(pruning_policies(), value=first, multiselect=True, label="Policies")
            ratios = gr.CheckboxGroup(list(RATIOS), value=[0.1, 0.25], label="Keep ratios")
            with gr.Row():
                go = gr.Button("Compare", variant="primary", scale=2, min_width=110)
                stop = stopping.stop_button()
        with gr.Column(scale=3, min_width=320):
            empty = "Compare, and what each policy kept and answered appears here, the nearest to the full model first."
            line = words.html(words.empty(empty), min_height=36)
            grid = words.html()
            table = words.html()
            with gr.Row():
                png = gr.DownloadButton("Download PNG", size="md", visible=False, min_width=120)
                numbers = gr.DownloadButton("Download JSON", size="md", visible=False, min_width=120)
    pictures_of.connect(picture, "compare")
    stale = words.line("This is another picture: Compare asks about it.", stale=True)
    more = {"queue": False, "api_visibility": "undocumented", "show_progress": "hidden"}
    picture.shown.change(lambda: stale, None, line, api_name="compare_changed", **more)

    def steps(shown: Shown, question: str, names: list[str], ratios: list[float]) -> Iterator[list[Any]]:
        cells: list[Cell] = []
        yield [words.progress(0, "reading the picture"), *[gr.skip()] * 4]
        for cells, n in compare(engine, shown, question, names, ratios):
            said = words.progress(len(cells) / n, f"{len(cells)} of {n}")
            yield [said, _figures(cells), _table(cells), gr.skip(), gr.skip()]
        # the page serves copies
        with tempfile.TemporaryDirectory(prefix="vtprune_demo_") as folder:
            files = [gr.DownloadButton(value=str(path), visible=True) for path in _files(cells, question, folder)]
            yield [words.line(_said(cells)), _figures(cells), _table(cells), *files]

    def run(shown: Shown, question: str, names: list[str], ratios: list[float]) -> Iterator[list[Any]]:
        """The grid so far, after each policy and ratio; the last one can be downloaded."""
        yield from words.explained(steps(shown, question, names, ratios), 5, 0)

    work = {"concurrency_id": "long", "concurrency_limit": 2, "show_progress": "hidden"}
    given = [picture.shown, picture.question, policies, ratios]
    shown = [line, grid, table, png, numbers]
    going = partial(gr.on, fn=run, inputs=given, outputs=shown, api_name="compare", **work)
    stopping.connect(stop, [go.click], going, line, "compare")


def _said(cells: list[Cell]) -> str:
    known = next((cell.values["unpruned"]["answer"] for cell in cells if cell.values), None)
    whole = "" if known is None else f" The full model answers: {known or '(nothing)'}."
    return f"{len(cells)} of {len(cells)}, the nearest to the full model first.{whole}"


def _figures(cells: list[Cell]) -> str:
    return figures.figures(map(_figure, cells), "cells")


def _figure(cell: Cell) -> str:
    ratio = "" if cell.keep_ratio is None else f" {cell.keep_ratio:g}"
    name = f"<b>{escape(cell.policy)}</b>{ratio}"
    if cell.error:
        return figures.figure(None, "", f"<span>{name}</span>{words.note(cell.error)}")
    pruned, right = cell.values["pruned"], cell.values["right_answer"]
    said = words.answer(pruned["answer"], right)
    bar, agree = "", "agreement unknown"
    if cell.agreement >= 0:
        bar, agree = words.meter(cell.agreement, "agreement"), f"agreement {100 * cell.agreement:.1f} %"
    tokens = f"{pruned['visual_tokens']:,} of {pruned['visual_tokens_before']:,} tokens"
    alt = f"{cell.name}: kept {tokens}, answers {pruned['answer']!r}, {agree}"
    caption = f"<span>{name}</span>{said}{bar}{words.note(agree)}{words.note(tokens)}"
    return figures.figure(_small(cell.picture), alt, caption)


def _small(picture: Image.Image | None) -> Image.Image | None:
    if picture is None:
        return None
    size = WIDTH, max(1, round(picture.height * WIDTH / picture.width))
    return picture.resize(size, Image.Resampling.BOX)


def _table(cells: list[Cell]) -> str:
    return words.table(COLUMNS, [_row(cell) for cell in cells])


def _row(cell: Cell) -> tuple[str, ...]:
    if cell.error:
        return cell.name, *"---"
    pruned = cell.values["pruned"]
    counts = [words.count(pruned[name]) for name in ("visual_tokens", "kv_bytes")]
    return cell.name, *counts, engineering(pruned["flops"])


def _files(cells: list[Cell], question: str, folder: str) -> tuple[Path, Path]:
    """The grid and its numbers as files."""
    picture, numbers = Path(folder, "vtprune_compare.png"), Path(folder, "vtprune_compare.json")
    draw_grid(cells, question).save(picture)
    found = {"question": question, "cells": plain_cells(cells)}
    numbers.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return picture, numbers
