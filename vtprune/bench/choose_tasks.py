"""The tasks of a run, from the command line, and which of their questions are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vtprune.bench.make_task import make_task, split_folder
from vtprune.bench.tasks import Task
from vtprune.bench.units import Entry, entries, sample
from vtprune.cli.error import UserError


def name_tasks(specs: Sequence[str], data: Path | None) -> tuple[dict[str, Task], dict[str, str]]:
    """(tasks, folders that were named) by what rows call the task, the spec without its folder; nothing is read.

    Raises UserError for a task that is unknown or named twice.
    """
    found: dict[str, Task] = {}
    folders: dict[str, str] = {}
    for spec in specs:
        name, folder = split_folder(spec)
        if name in found:
            raise UserError(f"--task {spec} is there twice; give each task once")
        found[name] = make_task(name, data, folder)
        if folder:
            folders[name] = folder
    return found, folders


def read_tasks(
    tasks: Mapping[str, Task], limit: int | None = None, seed: int = 0
) -> tuple[dict[str, dict[str, Any]], dict[str, list[Entry]]]:
    """({spec: what ``run.json`` says of the task}, {spec: the questions that are asked}).

    limit, seed: see ``vtprune.bench.units.sample``. Raises UserError, with where files were looked for, for a task that
    cannot be read or has no questions.
    """
    about, asked = {}, {}
    for spec, task in tasks.items():
        name = type(task).name
        where = f"--task {spec} looks in {task.folder}; --data DIR is for DIR/{name}, or say {name}:folder=PATH"
        try:
            every = entries(task.questions())
            revision = task.revision()
        except (ValueError, OSError) as error:
            raise UserError(f"{error} ({where})") from error
        if not every:
            raise UserError(f"task {spec} has no questions ({where})")
        asked[spec] = sample(every, limit, seed)
        told = {"source": task.source, "metric": task.metric, "visual": task.visual}
        about[spec] = {"name": name, "revision": revision, "questions": len(asked[spec]), "of": len(every), **told}
    return about, asked
