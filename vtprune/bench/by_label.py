"""Mean scores of the answers to questions of a kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtprune.bench.tasks.base import Scored


def by_label(scored: Sequence[Scored], label: str, order: Sequence[str] = ()) -> dict[str, float]:
    """The mean score for each value of a label; those named in ``order`` first, then as the questions come.

    Questions that do not have the label are left out.
    """
    groups: dict[str, list[float]] = {value: [] for value in order}
    for one in scored:
        if label in one.question.labels:
            groups.setdefault(one.question.labels[label], []).append(one.grade.score)
    return {value: sum(scores) / len(scores) for value, scores in groups.items() if scores}
