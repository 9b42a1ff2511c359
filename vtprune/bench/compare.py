"""``vtprune bench compare``: two result folders on the questions that both asked, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vtprune.bench.document import Block, Bullets, Cell, Heading, Table, Text, between, p_value, per_cent, signed
from vtprune.bench.gate import gate
from vtprune.bench.identity import differences
from vtprune.bench.markdown import markdown
from vtprune.bench.paired import paired
from vtprune.bench.result_folder import Results, read_results
from vtprune.bench.sheet import Column, Sheet, sheets

VERSUS = " vs "
COLUMNS = ("row", "n", "clusters", "A, %", "B, %", "B - A, points", "lost / won", "p", "B is")


def command(first: Path, second: Path, rows: Sequence[str] = (), force: bool = False) -> str:
    """The comparison as Markdown: what B, the second folder, has over A, the first, on the same questions.

    rows:  rows of the result table, "fastv@0.25", or two that are to be compared, "fastv@0.25 vs divprune@0.25", the
           first of A and the second of B. All that both folders have if none is given.
    force: compare although a task's files are not the same.
    Raises ValueError where folders, tasks, questions or rows have nothing in common, and where a revision differs.
    """
    one, other = read_results(first), read_results(second)
    mine, theirs = sheets(one), sheets(other)
    tasks = [name for name in mine if name in theirs]
    if not tasks:
        raise ValueError(f"no task is in both: {first} has {', '.join(mine)}; {second} has {', '.join(theirs)}")
    _check_revisions(one, other, tasks, force)
    blocks: list[Block] = [Text(f"A is {first}, {_model(one)}. B is {second}, {_model(other)}.")]
    changed = differences(one.run, other.run) if _complete(one) and _complete(other) else []
    blocks += [Text("What differs between the runs (was: A, is: B):"), Bullets(changed)] if changed else []
    for name in tasks:
        blocks += [Heading(2, name), *_task(mine[name], theirs[name], rows)]
    return markdown(blocks)


def _complete(results: Results) -> bool:
    return all(name in results.run for name in ("settings", "code", "versions"))


def _model(results: Results) -> str:
    return f"model {results.run['model'].get('name')}"


def _check_revisions(one: Results, other: Results, tasks: Sequence[str], force: bool) -> None:
    revisions = {task: [run.run["tasks"].get(task, {}).get("revision") for run in (one, other)] for task in tasks}
    changed = [f"{task} (A {a}, B {b})" for task, (a, b) in revisions.items() if a != b]
    if changed and not force:
        raise ValueError(
            f"the two runs did not ask the same: the revision differs of {', '.join(changed)}; ask again with the same "
            "files, or compare all the same with --force"
        )


def _task(mine: Sheet, theirs: Sheet, rows: Sequence[str]) -> list[Block]:
    places = {question: i for i, question in enumerate(theirs.questions)}
    here = np.array([i for i, question in enumerate(mine.questions) if question in places], dtype=int)
    if not len(here):
        return [Text("No question is in both.")]
    there = np.array([places[mine.questions[i]] for i in here])
    blocks: list[Block] = [
        Text(f"{len(here):,} questions are in both; A has {len(mine.questions):,}, B {len(theirs.questions):,}.")
    ]
    moved = int((mine.clusters[here] != theirs.clusters[there]).sum())
    if moved:
        blocks.append(Text(f"{moved:,} of them are about another picture in B; the clusters are those of A."))
    cells = []
    for a, b in _pairs(mine, theirs, rows):
        columns = _some(mine.columns[a], here), _some(theirs.columns[b], there)
        cells.append(_line(*columns, (mine, theirs), mine.clusters[here]))
    return [*blocks, Table(COLUMNS, cells, ("row", "B is"))]


def _pairs(mine: Sheet, theirs: Sheet, rows: Sequence[str]) -> list[tuple[str, str]]:
    """The rows to compare, of A and of B."""
    if not rows:
        both = [(name, name) for name in mine.columns if name in theirs.columns]
        if not both:
            raise ValueError(
                f"{mine.task}: no row is in both; choose two, as in 'fastv@0.25{VERSUS}divprune@0.25'. "
                f"A has {', '.join(mine.columns)}; B has {', '.join(theirs.columns)}"
            )
        return both
    found = []
    for text in rows:
        a, _, b = text.partition(VERSUS)
        pair = (a.strip(), (b or a).strip())
        for letter, name, sheet in zip("AB", pair, (mine, theirs), strict=True):
            if name not in sheet.columns:
                raise ValueError(f"{letter} has no row {name!r} of {sheet.task}; it has {', '.join(sheet.columns)}")
        found.append(pair)
    return found


def _some(column: Column, where: np.ndarray) -> Column:
    return replace(column, scores=column.scores[where], right=column.right[where])


def _line(a: Column, b: Column, both: tuple[Sheet, Sheet], clusters: np.ndarray) -> list[Cell]:
    name = a.name if a.name == b.name else f"{a.name}{VERSUS}{b.name}"
    for letter, column, sheet in (("A", a, both[0]), ("B", b, both[1])):
        why = _refused(column, sheet)
        if why:
            return [Cell(name), *[Cell("")] * 7, Cell(f"refused in {letter}: {why}", "bad")]
    pair = paired(b, a, clusters)
    if pair["difference"] is None:
        return [Cell(name), Cell("0"), *[Cell("")] * 6, Cell(pair["verdict"])]
    asked = a.asked & b.asked
    test: Mapping[str, Any] = pair["test"]
    means = [Cell(per_cent(float(column.scores[asked].mean()))) for column in (a, b)]
    words = pair["verdict"] + _prompts(a, b)
    return [
        Cell(name),
        Cell(f"{pair['n']:,}"),
        Cell(f"{pair['clusters']:,}"),
        *means,
        Cell(f"{signed(pair['difference'])}{between(pair['interval'], sign=True)}"),
        Cell(f"{test['right_to_wrong']} / {test['wrong_to_right']}"),
        Cell(p_value(test["p"])),
        Cell(words, "strong" if pair["verdict"] in ("better", "worse") else ""),
    ]


def _refused(column: Column, sheet: Sheet) -> str:
    """Why a row may not be scored; "" if it may."""
    if not column.condition.prunes:
        return ""
    full = next(iter(sheet.of_kind("full")), None)
    whole = next(iter(full.answers.values())) if full else {}
    verdicts = [gate(answers, whole) for answers in column.answers.values()]
    return next((one.reason for one in verdicts if not one.passed), "")


def _prompts(a: Column, b: Column) -> str:
    """A remark where the model was not asked the same words."""
    first, second = (next(iter(column.answers.values())) for column in (a, b))
    asked = [
        (row.get("prompt"), second[question].get("prompt")) for question, row in first.items() if question in second
    ]
    other = sum(one != two for one, two in asked if one is not None and two is not None)
    return f"; {other:,} of {len(asked):,} prompts differ" if other else ""
