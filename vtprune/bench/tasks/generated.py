"""What the generated tasks share: whole scenes or clips from a seed on, answers in a word, accuracy by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vtprune import embedded
from vtprune.bench.metrics.text import exact, normalized
from vtprune.bench.question import Grade, Question
from vtprune.bench.tasks.base import Scored, Task

FIRST_SEED = 1000
"""Earlier scenes and clips of the test split were looked at while the models were made."""


@dataclass(frozen=True)
class Generated(Task):
    """Questions with one right answer and the label "kind", about what a generator draws. It ignores ``folder``."""

    metric: ClassVar[str] = "accuracy"
    max_new_tokens: ClassVar[int] = 4
    generator: ClassVar[tuple[str, ...]]
    """Files of ``vtprune.embedded`` that decide what is seen and asked."""
    kinds: ClassVar[tuple[str, ...]]
    """Of questions, in the order of the tables."""

    def grade(self, question: Question, raw: str) -> Grade:
        return Grade(normalized(raw) or None, exact(raw, question.answer))

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Accuracy over all questions, and over those of each kind."""
        found = super().metrics(scored)
        for kind in self.kinds:
            scores = [one.grade.score for one in scored if one.question.labels["kind"] == kind]
            if scores:
                found[kind] = sum(scores) / len(scores)
        return found

    def files(self) -> list[Path]:
        """The generator: its code and what it draws with."""
        return [Path(embedded.__file__).with_name(name) for name in self.generator]


def check_whole(least: int, **numbers: int) -> None:
    """Raises ValueError for numbers that are not whole, or below ``least``."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is a whole number, {least} or more; got {value!r}")
