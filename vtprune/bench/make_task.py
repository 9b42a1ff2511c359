"""A task from how the command line names it: ``mvbench:subsets=star,clevrer``, its files in ``DATA/mvbench``."""

from __future__ import annotations

from pathlib import Path

from vtprune.bench.tasks import TASKS, Task
from vtprune.cli.error import UserError, did_you_mean
from vtprune.cli.options import option_types, parse_options


def split_folder(spec: str) -> tuple[str, str | None]:
    """ "pope:folder=/data/pope" -> ("pope", "/data/pope"): a task's name does not depend on where its files lie."""
    name, *texts = spec.split(":")
    said = [text.partition("=")[2] for text in texts if text.startswith("folder=")]
    return ":".join([name, *(text for text in texts if not text.startswith("folder="))]), said[-1] if said else None


def make_task(spec: str, data: str | Path | None = None, folder: str | None = None) -> Task:
    """The task of ``NAME[:option=value]...``; ``folder=PATH`` may stand among the options.

    data: the folder that holds each task's files under its name. folder: where they lie, if it is not there.
    Raises UserError for an unknown name or option, and for a value that an option cannot hold.
    """
    spec, said = split_folder(spec)
    folder = folder or said
    name, *texts = spec.split(":")
    if name not in TASKS:
        hint = did_you_mean(name, TASKS)
        raise UserError(f"unknown task {name!r}; {hint}known: {', '.join(sorted(TASKS))}")
    kind = TASKS[name]
    options = parse_options(kind, texts)
    unknown = sorted(set(options) - set(option_types(kind)))
    if unknown:
        known = sorted(option_types(kind))
        raise UserError(f"task {name} has no option {unknown[0]!r}; it has {', '.join(known)}")
    return kind(folder=Path(folder) if folder else Path(data or "") / name, **options)
