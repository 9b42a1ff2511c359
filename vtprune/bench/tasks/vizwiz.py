"""VizWiz-VQA: questions that blind people asked about their own photographs, many of which cannot be answered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtprune.bench.metrics.vqa import vqa_accuracy
from vtprune.bench.question import Grade, Question
from vtprune.bench.tasks.base import Scored, register
from vtprune.bench.tasks.picture import IN_A_WORD, PictureTask, Row, graded, parquet, with_parts

UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
"""The line that LLaVA-1.5 and lmms-eval put before how to answer."""


@register
@dataclass(frozen=True)
class VizWiz(PictureTask):
    """VQA accuracy over ten answers, in all and by category, of which "unanswerable" is one.

    A model that sees nothing does well on the unanswerable: read that part beside the others.

    split: val; the answers of test are not public.
    """

    name: ClassVar[str] = "vizwiz"
    summary: ClassVar[str] = "open questions of blind people about their photographs"
    source: ClassVar[str] = "Gurari et al., CVPR 2018; lmms-lab/VizWiz-VQA"
    metric: ClassVar[str] = "VQA accuracy"
    max_new_tokens: ClassVar[int] = 32

    split: str = "val"

    def patterns(self) -> Sequence[str]:
        return parquet(self.split)

    def ask(self, row: Row) -> Iterable[Question]:
        id, question, answers, category = row.need("question_id", "question", "answers", "category")
        text = question.capitalize() + UNANSWERABLE + IN_A_WORD
        answer = list(row.known(answers, self.split))
        yield row.ask(text, answer, id=str(id), labels={"category": str(category)})

    def grade(self, question: Question, raw: str) -> Grade:
        return graded(raw, vqa_accuracy(raw, question.answer))

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        return with_parts(self.metric, scored, "category")
