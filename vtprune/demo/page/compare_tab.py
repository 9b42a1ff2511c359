"""The compare tab: one picture, several policies and ratios, sorted by how near they are to the full model."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from vtprune.cli.result import engineering
from vtprune.demo.engine import Engine
from vtprune.demo.grid import Cell, compare, draw_grid, plain_cells
from vtprune.demo.page import picture_box as pictures_of
from vtprune.demo.page import words
from vtprune.demo.page.words import PROGRESS, told
from vtprune.demo.shown import Shown
from vtprune.policies.base import POLICIES

FIRST_POLICIES = ("fastv", "idpruner", "pool", "random")
RATIOS = (0.1, 0.25, 0.5, 0.75)
COLUMNS = ("policy", "keep ratio", "visual tokens", "answer", "agreement", "KV cache, bytes", "FLOPs")


def compare_tab(engine: Engine) -> None:
    """The tab, inside a gr.Blocks."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            picture = pictures_of.picture_box()
            first = [name for name in FIRST_POLICIES if name in POLICIES]
            policies = gr.Dropdown(sorted(POLICIES), value=first, multiselect=True, label="Policies")
            ratios = gr.CheckboxGroup(list(RATIOS), value=[0.1, 0.25], label="Keep ratios")
            with gr.Row():
                go = gr.Button("Compare", variant="primary", min_width=110)
                stop = gr.Button("Stop", min_width=80)
        with gr.Column(scale=3, min_width=320):
            line = gr.HTML(words.empty("Compare, and each policy's picture and answer appear here, the nearest first."))
            grid = gr.Image(
                label="What each kept",
                alt_text="Grid of policies",
                format="png",
                interactive=False,
                buttons=["fullscreen"],
            )
            with gr.Row():
                png = gr.DownloadButton("Download PNG", interactive=False, min_width=120)
                numbers = gr.DownloadButton("Download JSON", interactive=False, min_width=120)
            table = gr.HTML()
    pictures_of.connect(picture, "compare")

    def run(
        shown: Shown, question: str, names: list[str], ratios: list[float], progress: gr.Progress = PROGRESS
    ) -> Iterator[list[Any]]:
        """The grid so far, after each policy and ratio; the last one can be downloaded."""
        with told():
            cells: list[Cell] = []
            for cells, n in compare(engine, shown, question, names, ratios):
                progress((len(cells), n), f"{len(cells)} of {n}")
                said = words.line(f"{len(cells)} of {n} …")
                yield [said, _drawn(cells, question), gr.skip(), gr.skip(), _table(cells)]
            said = words.line(f"{len(cells)} of {len(cells)}, the nearest to the full model first.")
            # the page serves copies
            with tempfile.TemporaryDirectory(prefix="vtprune_demo_") as folder:
                files = [
                    gr.DownloadButton(value=str(path), interactive=True) for path in _files(cells, question, folder)
                ]
                yield [said, gr.skip(), *files, gr.skip()]

    given, shown = [picture.shown, picture.question, policies, ratios], [line, grid, png, numbers, table]
    going = go.click(
        run, given, shown, api_name="compare", concurrency_id="long", concurrency_limit=2, show_progress="minimal"
    )
    stop.click(lambda: words.line("Stopped."), None, line, cancels=[going], queue=False, api_name="compare_stop")


def _drawn(cells: list[Cell], question: str) -> gr.Image:
    spoken = "; ".join(f"{cell.name}: {cell.error or _row(cell)[3]}" for cell in cells)
    return gr.Image(value=draw_grid(cells, question), alt_text=f"What each policy kept, and said: {spoken}")


def _table(cells: list[Cell]) -> str:
    return words.table(COLUMNS, [_row(cell) for cell in cells])


def _row(cell: Cell) -> tuple[str, ...]:
    ratio = "-" if cell.keep_ratio is None else f"{cell.keep_ratio:g}"
    if cell.error:
        return cell.policy, ratio, "-", cell.error, "-", "-", "-"
    pruned = cell.values["pruned"]
    agree = "-" if cell.agreement < 0 else f"{100 * cell.agreement:.1f} %"
    tokens = f"{pruned['visual_tokens']:,} of {pruned['visual_tokens_before']:,}"
    held = "-" if pruned["kv_bytes"] is None else f"{pruned['kv_bytes']:,}"
    return cell.policy, ratio, tokens, pruned["answer"] or "(nothing)", agree, held, engineering(pruned["flops"])


def _files(cells: list[Cell], question: str, folder: str) -> tuple[Path, Path]:
    """The grid and its numbers as files."""
    picture, numbers = Path(folder, "vtprune_compare.png"), Path(folder, "vtprune_compare.json")
    draw_grid(cells, question).save(picture)
    found = {"question": question, "cells": plain_cells(cells)}
    numbers.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return picture, numbers
