"""POPE: is such an object in the picture? Half of the objects are not; three ways to choose those."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtprune.bench.metrics.yes_no import binary, read_yes_no
from vtprune.bench.question import Grade, Question
from vtprune.bench.tasks.base import Scored, register
from vtprune.bench.tasks.picture import IN_A_WORD, PictureTask, Row, groups, parquet

CATEGORIES = ("random", "popular", "adversarial")


@register
@dataclass(frozen=True)
class POPE(PictureTask):
    """Accuracy of yes and no. The published figure is F1 of "yes", of which the mean over the three ways comes first.

    An answer that is neither is wrong, and no "yes" in precision and recall.
    """

    name: ClassVar[str] = "pope"
    summary: ClassVar[str] = "is there such an object in the picture (hallucination)"
    source: ClassVar[str] = "Li et al., EMNLP 2023; lmms-lab/POPE"
    metric: ClassVar[str] = "accuracy"

    def patterns(self) -> Sequence[str]:
        return (*parquet("test"), "Full/*.parquet")

    def ask(self, row: Row) -> Iterable[Question]:
        id, question, answer, category = row.need("question_id", "question", "answer", "category")
        if category not in CATEGORIES:
            raise ValueError(f"{row.where}: category is one of {', '.join(CATEGORIES)}; got {category!r}")
        # numbers start anew in each category
        labels = {"category": category}
        yield row.ask(question.strip() + IN_A_WORD, yes_or_no(answer, row), id=f"{category}/{id}", labels=labels)

    def grade(self, question: Question, raw: str) -> Grade:
        parsed = read_yes_no(raw)
        return Grade(parsed, float(parsed == question.answer))

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        """ "F1" and "accuracy" are means over the categories, as in LLaVA-1.5; "pooled" ones are over all answers."""
        if not scored:
            return {}
        found = groups(scored, lambda question: question.labels["category"])
        each = {name: binary(_pairs(found[name])) for name in CATEGORIES if name in found}
        pooled = binary(_pairs(scored))
        means = {name: sum(one[name] for one in each.values()) / len(each) for name in ("F1", "accuracy")}
        parts = {f"{what}, {name}": each[name][what] for name in each for what in ("F1", "accuracy")}
        return {**means, **parts, **{f"{name}, pooled": value for name, value in pooled.items()}}


def yes_or_no(answer: str, row: Row) -> str:
    """What is right, in small letters and without a full stop. Raises ValueError for any other word."""
    word = str(answer).strip().lower().rstrip(".")
    if word not in ("yes", "no"):
        raise ValueError(f"{row.where}: the answer is yes or no; got {answer!r}")
    return word


def _pairs(scored: Sequence[Scored]) -> list[tuple[str | None, str]]:
    return [(one.grade.parsed, one.question.answer) for one in scored]
