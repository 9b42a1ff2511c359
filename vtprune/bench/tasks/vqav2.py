"""VQAv2: open questions about COCO pictures, each answered by ten people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtprune.bench.metrics.vqa import vqa_accuracy
from vtprune.bench.question import Grade, Question
from vtprune.bench.tasks.base import Scored, register
from vtprune.bench.tasks.picture import IN_A_WORD, PictureTask, Row, graded, parquet, with_parts


@register
@dataclass(frozen=True)
class VQAv2(PictureTask):
    """VQA accuracy over ten answers, in all and by type of answer (yes/no, number, other).

    split: validation; the answers of the test splits are not public.
    """

    name: ClassVar[str] = "vqav2"
    summary: ClassVar[str] = "open questions about everyday pictures, ten answers each"
    source: ClassVar[str] = "Goyal et al., CVPR 2017; lmms-lab/VQAv2"
    metric: ClassVar[str] = "VQA accuracy"

    split: str = "validation"

    def patterns(self) -> Sequence[str]:
        return parquet(self.split)

    def ask(self, row: Row) -> Iterable[Question]:
        id, question, answers, kind = row.need("question_id", "question", "answers", "answer_type")
        texts = [one["answer"] if isinstance(one, dict) else one for one in row.known(answers, self.split)]
        yield row.ask(question + IN_A_WORD, texts, id=str(id), labels={"answer type": str(kind)})

    def grade(self, question: Question, raw: str) -> Grade:
        return graded(raw, vqa_accuracy(raw, question.answer))

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        return with_parts(self.metric, scored, "answer type")
