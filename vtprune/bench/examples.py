"""Questions that pruning lost: right with every visual token, wrong without some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtprune.bench.document import Cell, Table
from vtprune.bench.series import scored
from vtprune.bench.sheet import Sheet
from vtprune.cli.console import printable

EACH, MOST = 4, 12
LONGEST = 120


def lost_by_row(sheet: Sheet, task: Mapping[str, Any], ratio: float) -> Table | None:
    """The first few questions that each policy lost at a ratio; every policy is shown some of different pictures."""
    full = _full(sheet, task)
    rows, lines = [], []
    for name, row in task["rows"].items():
        if full is None or row["kind"] != "policy" or row["keep_ratio"] != ratio or row.get("score") is None:
            continue
        answers = next(iter(sheet.columns[name].answers.values()))
        lost = [q for q, one in answers.items() if q in full and full[q]["correct"] and not one["correct"]]
        if lost:
            lines.append((len(rows), f"{name}: {len(lost)} questions lost"))
        pictures = {answers[question]["cluster"]: question for question in reversed(lost)}
        for question in list(reversed(pictures.values()))[:EACH]:
            rows.append([*_asked(full[question]), _said(full[question]), _said(answers[question])])
    columns = ("question", "about", "options", "answer", "with every token", "pruned")
    return Table(columns, rows, columns, lines) if rows else None


def most_lost(sheet: Sheet, task: Mapping[str, Any], ratio: float) -> Table | None:
    """The questions that most policies lost at a ratio, and how many of them."""
    full = _full(sheet, task)
    names = [
        name
        for name, row in task["rows"].items()
        if row["kind"] == "policy" and row["keep_ratio"] == ratio and row.get("score") is not None
    ]
    if full is None or len(names) < 2:
        return None
    wrong: dict[str, int] = {}
    for name in names:
        for question, row in next(iter(sheet.columns[name].answers.values())).items():
            if question in full and full[question]["correct"] and not row["correct"]:
                wrong[question] = wrong.get(question, 0) + 1
    worst = sorted(wrong, key=lambda question: -wrong[question])[:MOST]
    columns = ("question", "about", "options", "answer", "with every token", "policies that lost it")
    rows = [[*_asked(full[q]), _said(full[q]), Cell(f"{wrong[q]} of {len(names)}")] for q in worst]
    return Table(columns, rows, columns[:-1]) if rows else None


def _full(sheet: Sheet, task: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]] | None:
    column = next(iter(sheet.of_kind("full")), None)
    return next(iter(column.answers.values())) if column and scored(task, "full") else None


def _asked(row: Mapping[str, Any]) -> list[Cell]:
    answer = row.get("answer")
    options = "; ".join(row.get("options") or ())
    about = ", ".join(map(str, row.get("visuals") or ())) or row["cluster"]
    return [_words(row["question"]), _words(about), _words(options), _words(answer)]


def _said(row: Mapping[str, Any]) -> Cell:
    if row["error"] is not None:
        return Cell(f"failed: {shortened(row['error'])}", "bad")
    return Cell(shortened(row["raw"]), "quiet" if row["parsed"] is None else "")


def _words(value: Any) -> Cell:
    return Cell(shortened(value if isinstance(value, str) else str(value)))


def shortened(text: str) -> str:
    """One line, printable, not too long."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
