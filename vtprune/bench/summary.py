"""A run in numbers: for every task and row of the table its score and interval, and what it must be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vtprune.bench.gate import SHARES, Verdict, gate
from vtprune.bench.make_task import make_task
from vtprune.bench.paired import paired, ties
from vtprune.bench.question import Grade, Question
from vtprune.bench.result_folder import Results
from vtprune.bench.sheet import Column, Sheet, sheets
from vtprune.bench.statistics import DRAWS, LEVEL, mean_interval, score_interval
from vtprune.bench.tasks import TASKS, Scored, Task
from vtprune.bench.usage import behaviour, rechecks, seconds, tokens
from vtprune.bench.worth import dependent, on_dependent, visual_gain

UNJUDGED = ("full", "blind", "other")
"""Kinds of conditions that no ratio belongs to."""
MOST_VALUES = 60
"""A label with more values than this is no category."""


def summarize(results: Results) -> dict[str, Any]:
    """The summary, as JSON can hold it: {"model", "run", "level", "draws", "tasks": {name: ...}, "notes"}.

    A task holds {"questions", "clusters", "metric", ..., "rows": {name: ...}, "ratios": {"0.25": {"best", "tied",
    "behind"}}}. A row that its gate refuses has "refused", the reason, and no score.
    """
    notes: list[str] = []
    found = {name: _task(sheet, results, notes) for name, sheet in sheets(results).items()}
    left = {name: value for name, value in results.run.items() if name not in ("model", "tasks", "conditions")}
    return {
        "model": results.run["model"],
        "run": left,
        "level": LEVEL,
        "draws": DRAWS,
        "tasks": found,
        "notes": notes,
    }


def _task(sheet: Sheet, results: Results, notes: list[str]) -> dict[str, Any]:
    about = dict(results.run["tasks"].get(sheet.task, {}))
    full = next(iter(sheet.of_kind("full")), None)
    verdicts = {name: _gate(column, full) for name, column in sheet.columns.items() if column.condition.prunes}
    passed = {name: one for name, one in sheet.columns.items() if name not in verdicts or verdicts[name].passed}
    grader = _grader(sheet.task)
    if grader is None:
        notes.append(f"{sheet.task} is no task of this version of vtprune: its published metrics are left out.")
    rows = {}
    for name, column in sheet.columns.items():
        if column.condition.kind == "twin":
            # what a policy is compared with; no row of its own
            continue
        row = _always(column, sheet, full, results)
        row["gate"] = verdicts[name].values() if name in verdicts else None
        row["refused"] = None if name in passed else verdicts[name].reason
        rows[name] = {**row, **(_judged(column, sheet, passed, full, grader) if name in passed else {})}
    incomplete = [name for name, column in sheet.columns.items() if not column.asked.all()]
    if incomplete:
        notes.append(
            f"{sheet.task}: not all {len(sheet.questions)} questions were asked of {', '.join(incomplete)}; "
            "differences are over the questions that both rows were asked."
        )
    return {
        **about,
        "questions": len(sheet.questions),
        "clusters": len(set(sheet.clusters.tolist())),
        "rows": rows,
        "ratios": _ratios(sheet, passed),
        "times": [row for row in results.times if row["task"] == sheet.task],
    }


def _gate(column: Column, full: Column | None) -> Verdict:
    """The verdict on all seeds of a row: the first that is refused refuses it."""
    whole = next(iter(full.answers.values())) if full else {}
    found = {name: gate(answers, whole) for name, answers in column.answers.items()}
    for name, one in found.items():
        if not one.passed:
            return one if len(found) == 1 else Verdict(False, f"{name}: {one.reason}", one.kept)
    if len(found) == 1:
        return next(iter(found.values()))
    shares = {part: float(np.mean([getattr(one, part) for one in found.values()])) for part in SHARES}
    return Verdict(True, f"{len(found)} seeds; of the first: {next(iter(found.values())).reason}", **shares)


def _always(column: Column, sheet: Sheet, full: Column | None, results: Results) -> dict[str, Any]:
    """What is known of a row whether it may be scored or not."""
    condition = column.condition
    return {
        "kind": condition.kind,
        "policy": condition.spec if condition.policy != "none" else None,
        "keep_ratio": condition.keep_ratio,
        "beside": condition.beside,
        "seeds": [one.seed for one in column.conditions.values()],
        "n": int(column.asked.sum()),
        "clusters": len(set(sheet.clusters[column.asked].tolist())),
        **behaviour(column),
        "tokens": tokens(column, full),
        "seconds": seconds(column),
        "recheck": rechecks(results.rechecks, sheet.task, column),
    }


def _judged(
    column: Column, sheet: Sheet, passed: Mapping[str, Column], full: Column | None, grader: Task | None
) -> dict[str, Any]:
    """What only a row that passed its gate has."""
    where = column.asked
    if not where.any():
        return {"score": None, "interval": None, "how": "no question was asked of every seed"}
    interval, how = score_interval(column.scores[where], sheet.grouped(where))
    twin = None if column.condition.kind in (*UNJUDGED, "random") else random_twin(column, passed, full)
    return {
        "score": float(column.scores[where].mean()),
        "interval": interval,
        "how": how,
        "metrics": _metrics(column, grader),
        "labels": _by_label(column, sheet, full),
        "to_full": paired(column, full, sheet.clusters) if full and column is not full else None,
        "to_random": paired(column, twin, sheet.clusters) if twin else None,
        "retained": visual_gain(sheet, column),
        "subset": on_dependent(sheet, column),
    }


def random_twin(column: Column, passed: Mapping[str, Column], full: Column | None) -> Column | None:
    """The random row that a row is compared with: its twin if it has one; else of its ratio, with its positions if
    there is one, and of those the one whose layers see most nearly as many visual tokens."""
    mine = column.condition
    own = [one for one in passed.values() if one.condition.kind == "twin" and one.condition.beside in column.conditions]
    if own:
        return own[0]
    found = [one for one in passed.values() if one.condition.kind == "random" and one is not column]
    found = [one for one in found if one.condition.keep_ratio == mine.keep_ratio]
    alike = [one for one in found if one.condition.positions == mine.positions] or found
    if len(alike) < 2:
        return next(iter(alike), None)
    share = tokens(column, full)["layer_share"] or 0.0
    return min(alike, key=lambda one: abs((tokens(one, full)["layer_share"] or 0.0) - share))


def _by_label(column: Column, sheet: Sheet, full: Column | None) -> dict[str, Any]:
    """Score and difference from full for every value of every label."""
    out: dict[str, Any] = {}
    for label, values in sheet.labels().items():
        several = sorted(set(values.tolist()) - {""})
        if not 1 < len(several) <= MOST_VALUES:
            continue
        out[label] = {}
        for value in several:
            where = column.asked & (values == value)
            if not where.any():
                continue
            groups = sheet.grouped(where)
            interval, _ = score_interval(column.scores[where], groups)
            one = {"n": int(where.sum()), "score": float(column.scores[where].mean()), "interval": interval}
            both = where & full.asked if full and column is not full else np.zeros_like(where)
            if both.any():
                difference = column.scores[both] - full.scores[both]
                one["to_full"] = float(difference.mean())
                one["to_full_interval"] = mean_interval(difference, sheet.grouped(both))
            out[label][value] = one
    return out


def _ratios(sheet: Sheet, passed: Mapping[str, Column]) -> dict[str, Any]:
    """For every ratio below 1: the best row, those that cannot be told from it, and the vision-dependent questions."""
    judged = [one for one in passed.values() if one.condition.kind not in (*UNJUDGED, "twin") and one.asked.any()]
    out = {}
    for ratio in sorted({one.condition.keep_ratio for one in judged if one.condition.keep_ratio < 1}, reverse=True):
        rivals = [one for one in judged if one.condition.keep_ratio == ratio]
        found = dependent(sheet, ratio)
        which = {"questions": int(found[0].sum()), "which": found[1]} if found else None
        out[f"{ratio:g}"] = {**ties(sheet, rivals), "dependent": which}
    return out


def _grader(spec: str) -> Task | None:
    """A task, whether its files are there or not: metrics look at questions that were read long ago."""
    return make_task(spec) if spec.partition(":")[0] in TASKS else None


def _metrics(column: Column, grader: Task | None) -> dict[str, float]:
    """The task's published figures from stored rows, mean over seeds."""
    if grader is None:
        return {}
    each = [grader.metrics([_scored(row) for row in answers.values()]) for answers in column.answers.values()]
    return {name: float(np.mean([one[name] for one in each])) for name in each[0] if all(name in one for one in each)}


def _scored(row: Mapping[str, Any]) -> Scored:
    """An answer as the task graded it; neither text nor pictures of the question are needed any more."""
    options: Sequence[str] = row.get("options") or ()
    question = Question(
        row["question"], "", (), row.get("answer"), row["cluster"], tuple(options), row.get("labels") or {}
    )
    return Scored(question, Grade(row["parsed"], row["score"]))
