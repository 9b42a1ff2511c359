"""A result folder, read: what was run, a row for each question and condition, times and re-checks if there are any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtprune.bench.condition import Condition
from vtprune.bench.lines import read_lines
from vtprune.bench.store import ROWS, RUN, read_run

TIMES, RECHECK = "times.jsonl", "recheck.jsonl"

NEEDED = ("task", "question", "condition", "row", "cluster", "raw", "parsed", "score", "correct", "error")
"""What no row can be judged without."""


@dataclass(frozen=True)
class Results:
    """What lies in a result folder.

    run:        as ``run.json`` holds it. conditions: by name, in the order in which they were asked for.
    rows:       by task and condition name, then by question id; each as ``rows.jsonl`` holds it.
    times:      rows of ``times.jsonl``. rechecks: rows of ``recheck.jsonl``: {"task", "question", "condition", "what",
                "same_kept", "same_answer"}.
    """

    folder: Path
    run: Mapping[str, Any]
    conditions: Mapping[str, Condition]
    rows: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]
    times: Sequence[Mapping[str, Any]] = ()
    rechecks: Sequence[Mapping[str, Any]] = ()


def read_results(folder: Path) -> Results:
    """Raises ValueError, with file and line, where a folder does not hold a run or holds what does not fit together."""
    folder = Path(folder)
    run = _run(folder)
    conditions = {one.name: one for one in map(Condition.of, run["conditions"])}
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for line, row in read_lines(folder / ROWS):
        where = f"{folder / ROWS} line {line}"
        missing = [name for name in NEEDED if name not in row]
        if missing:
            raise ValueError(f"{where} has no {', '.join(missing)}; it has {', '.join(row)}")
        if row["condition"] not in conditions:
            raise ValueError(
                f"{where} is of condition {row['condition']!r}, which {RUN} does not name; there are: "
                f"{', '.join(conditions)}. Rows of another run cannot be mixed in"
            )
        of = rows.setdefault(row["task"], {}).setdefault(row["condition"], {})
        before = of.get(row["question"])
        # a failure that was tried again is no second answer
        if before is not None and before["error"] is None:
            raise ValueError(
                f"{where} answers question {row['question']!r} of {row['task']} under {row['condition']!r} a second "
                "time; two runs wrote here. Take one of the lines out"
            )
        of[row["question"]] = row
    if not rows:
        raise ValueError(f"{folder / ROWS} holds no rows; run vtprune bench with --out {folder} first")
    return Results(folder, run, conditions, rows, _records(folder / TIMES), _records(folder / RECHECK))


def _records(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in read_lines(path)] if path.exists() else []


def _run(folder: Path) -> dict[str, Any]:
    run = read_run(folder)
    if run is None or not (folder / ROWS).is_file():
        raise ValueError(
            f"{folder} has no {RUN if run is None else ROWS}; give the folder that vtprune bench --out wrote"
        )
    missing = [name for name in ("model", "tasks", "conditions") if name not in run]
    if missing:
        raise ValueError(f"{folder / RUN} has no {', '.join(missing)}; it was not written by vtprune bench")
    return run
