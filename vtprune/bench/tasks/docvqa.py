"""DocVQA: questions about scanned pages, scored by edit distance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtprune.bench.metrics.anls import anls
from vtprune.bench.question import Grade, Question
from vtprune.bench.tasks.base import register
from vtprune.bench.tasks.picture import IN_A_WORD, PictureTask, Row, graded, parquet


@register
@dataclass(frozen=True)
class DocVQA(PictureTask):
    """ANLS: the best of one minus the normalised edit distance to the answers, 0 below a half.

    split: validation or train; the answers of test are not public.
    """

    name: ClassVar[str] = "docvqa"
    summary: ClassVar[str] = "open questions about scanned documents"
    source: ClassVar[str] = "Mathew et al., WACV 2021; lmms-lab/DocVQA"
    metric: ClassVar[str] = "ANLS"
    max_new_tokens: ClassVar[int] = 64

    split: str = "validation"

    def patterns(self) -> Sequence[str]:
        return parquet(self.split, "DocVQA")

    def ask(self, row: Row) -> Iterable[Question]:
        id, question, answers = row.need("questionId", "question", "answers")
        kinds = row.record.get("question_types")
        labels = {"type": " + ".join(sorted(kinds))} if kinds else {}
        yield row.ask(question + IN_A_WORD, list(row.known(answers, self.split)), id=str(id), labels=labels)

    def grade(self, question: Question, raw: str) -> Grade:
        return graded(raw, anls(raw, question.answer))
