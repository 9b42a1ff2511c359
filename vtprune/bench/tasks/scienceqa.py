"""ScienceQA: multiple choice from school books; only the questions that come with a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vtprune.bench.metrics.choice import lettered
from vtprune.bench.question import Question
from vtprune.bench.tasks.base import register
from vtprune.bench.tasks.multiple_choice import MultipleChoice, letter_at
from vtprune.bench.tasks.picture import BY_LETTER, PictureTask, Row, parquet


@register
@dataclass(frozen=True)
class ScienceQA(MultipleChoice, PictureTask):
    """Accuracy, in all and by subject.

    split: test, validation or train.
    """

    name: ClassVar[str] = "scienceqa"
    summary: ClassVar[str] = "multiple choice from school books, questions with a picture"
    source: ClassVar[str] = "Lu et al., NeurIPS 2022; lmms-lab/ScienceQA, ScienceQA-IMG"
    by: ClassVar[str] = "subject"

    split: str = "test"

    def patterns(self) -> Sequence[str]:
        return (*parquet(self.split, "ScienceQA-IMG"), *parquet(self.split, "ScienceQA-FULL"), *parquet(self.split))

    def cell(self, record: Mapping[str, Any], where: str) -> Any:
        """ScienceQA-FULL has questions without a picture too."""
        return record.get("image")

    def ask(self, row: Row) -> Iterable[Question]:
        question, choices, answer = row.need("question", "choices", "answer")
        subject, grade = row.need("subject", "grade")
        hint = row.record.get("hint")
        context = f"Context: {hint}\n" if hint else ""
        text = f"{context}{question}\n{lettered(choices)}{BY_LETTER}"
        right = letter_at(answer, choices, row.where)
        labels = {"subject": subject, "grade": grade}
        yield row.ask(text, right, options=choices, labels=labels)
