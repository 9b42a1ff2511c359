"""What ``vtprune bench`` prints: the tasks there are, the scores of a result folder, two folders side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vtprune.cli.console import STDOUT, note, say, table, write_json

LEFT_OUT = frozenset({"p", "where seeing is needed, %"})
"""Columns of the report's table of scores that a terminal has no room for."""


def show_report(folder: Path, json_to: str | None = None, *, plots: bool = True) -> None:
    """Writes a result folder's report and prints its scores, or the summary as JSON instead."""
    from vtprune.bench import report

    try:
        paths = report.command(folder, plots=plots)
    except ImportError as error:
        note(f"no plots: {error}")
        paths = report.command(folder, plots=False)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if json_to:
        write_json(summary, json_to)
    if json_to == STDOUT:
        return
    for name, task in summary["tasks"].items():
        _print_task(name, task)
    say(f"Written: {', '.join(str(path) for path in paths[:2])}")


def _print_task(name: str, task: Mapping[str, Any]) -> None:
    from vtprune.bench.conclusions import conclusions
    from vtprune.bench.result_tables import score_table

    say(f"{name}: {task['questions']:,} questions", style="bold")
    drawn = score_table(task)
    shown = [i for i, column in enumerate(drawn.columns) if column not in LEFT_OUT]
    rows = [[row[i].text for i in shown] for row in drawn.rows]
    for index, words in reversed(drawn.parts):
        rows.insert(index, [words, *[""] * (len(shown) - 1)])
    columns = [drawn.columns[i] for i in shown]
    table(columns, rows, right=[column for column in columns if column not in drawn.left])
    say("")
    for sentence in conclusions(task):
        say(f"* {sentence}")
    say("")


def show_comparison(one: Path, other: Path, rows: Sequence[str] = (), *, force: bool = False) -> None:
    """Prints what two result folders say of the same questions. rows, force: see ``vtprune.bench.compare``."""
    from vtprune.bench import compare

    say(compare.command(one, other, rows, force))


def list_tasks(json_to: str | None) -> None:
    """Prints the tasks, or writes them as JSON."""
    from vtprune.bench.tasks import TASKS

    tasks = [task_values(TASKS[name]) for name in sorted(TASKS)]
    if json_to:
        write_json(tasks, json_to)
        return
    rows = []
    for task in tasks:
        options = ", ".join(f"{option}={value}" for option, value in task["options"].items())
        rows.append((task["name"], task["visual"], task["summary"], task["metric"], options or "-", task["source"]))
    table(("task", "about", "what is asked", "score", "options", "source"), rows)
    say("\nEach reads its files, as published, from DIR/NAME (--data DIR) or PATH (NAME:folder=PATH).")


def task_values(task: Any) -> dict[str, Any]:
    """What a task is, and its options with their defaults."""
    from vtprune.cli.policies import plain_value

    fields = [field for field in dataclasses.fields(task) if field.name != "folder"]
    missing = dataclasses.MISSING
    options = {field.name: None if field.default is missing else plain_value(field.default) for field in fields}
    said = {name: getattr(task, name) for name in ("name", "summary", "source", "visual", "metric", "max_new_tokens")}
    return {**said, "options": options}
