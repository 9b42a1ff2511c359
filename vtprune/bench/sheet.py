"""The answers to one task as a table: a column of scores for each row of the result table, a line for each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtprune.bench.condition import Condition
from vtprune.bench.result_folder import Results
from vtprune.bench.statistics import Floats, clustered

Answers = Mapping[str, Mapping[str, Any]]
"""Rows of ``rows.jsonl`` by question id, of one condition."""


@dataclass(frozen=True)
class Column:
    """One row of the result table: conditions that differ in nothing but the seed.

    conditions: by name. answers: of each condition. scores: (Q,) mean over seeds, not a number where a question was not
    asked of every seed. right: (Q,) whether most seeds were right.
    """

    name: str
    conditions: Mapping[str, Condition]
    answers: Mapping[str, Answers]
    scores: Floats
    right: NDArray[np.bool_]

    @property
    def condition(self) -> Condition:
        """One of the conditions; the others differ in the seed."""
        return next(iter(self.conditions.values()))

    @property
    def asked(self) -> NDArray[np.bool_]:
        """(Q,) which questions were asked."""
        return ~np.isnan(self.scores)

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """All rows, of all seeds."""
        return [row for answers in self.answers.values() for row in answers.values()]


@dataclass(frozen=True)
class Sheet:
    """All answers to one task.

    questions: ids, in the order of the file. columns: by name.
    """

    task: str
    questions: Sequence[str]
    columns: Mapping[str, Column]
    anyone: Answers
    """A row for every question, whoever answered it: what they say of the question is the same."""

    @cached_property
    def clusters(self) -> NDArray[np.str_]:
        """(Q,) names."""
        return np.array([str(self.anyone[question]["cluster"]) for question in self.questions])

    def labels(self) -> dict[str, NDArray[np.str_]]:
        """What each question is labelled, by name of the label: (Q,), "" where it has none."""
        names = dict.fromkeys(name for row in self.anyone.values() for name in row.get("labels") or {})
        return {
            name: np.array([str((self.anyone[q].get("labels") or {}).get(name, "")) for q in self.questions])
            for name in names
        }

    def of_kind(self, kind: str, keep_ratio: float | None = None) -> list[Column]:
        """The columns of a kind of condition, at one ratio if it is given."""
        return [
            column
            for column in self.columns.values()
            if column.condition.kind == kind and keep_ratio in (None, column.condition.keep_ratio)
        ]

    def grouped(self, where: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The clusters of some questions, as numbers."""
        return clustered(self.clusters[where])


def sheets(results: Results) -> dict[str, Sheet]:
    """The answers of a run, by task."""
    return {task: _sheet(task, answers, results.conditions) for task, answers in results.rows.items()}


def _sheet(task: str, answers: Mapping[str, Answers], conditions: Mapping[str, Condition]) -> Sheet:
    anyone: dict[str, Mapping[str, Any]] = {}
    for rows in answers.values():
        for question, row in rows.items():
            first = anyone.setdefault(question, row)
            if first["cluster"] != row["cluster"]:
                raise ValueError(
                    f"question {question!r} of {task} is of cluster {first['cluster']!r} under {first['condition']!r} "
                    f"and of {row['cluster']!r} under {row['condition']!r}; these rows are not of one run"
                )
    columns: dict[str, dict[str, Condition]] = {}
    # in the order of the run, so that tables are, too
    for name, condition in conditions.items():
        if name in answers:
            columns.setdefault(condition.row, {})[name] = condition
    questions = list(anyone)
    made = {row: _column(row, of, {name: answers[name] for name in of}, questions) for row, of in columns.items()}
    return Sheet(task, questions, made, anyone)


def _column(
    name: str, conditions: Mapping[str, Condition], answers: Mapping[str, Answers], questions: Sequence[str]
) -> Column:
    missing: dict[str, Any] = {"score": np.nan, "correct": False}
    seeds = [[rows.get(question, missing) for question in questions] for rows in answers.values()]
    scores = np.array([[float(row["score"]) for row in rows] for rows in seeds]).mean(axis=0)
    right = np.array([[bool(row["correct"]) for row in rows] for rows in seeds]).mean(axis=0) > 0.5
    return Column(name, conditions, answers, scores, right)
