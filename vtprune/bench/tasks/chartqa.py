"""ChartQA: questions about charts, written by people or made from summaries; numbers may be 5 % off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtprune.bench.metrics.relaxed import relaxed
from vtprune.bench.question import Grade, Question
from vtprune.bench.tasks.base import Scored, register
from vtprune.bench.tasks.picture import IN_A_WORD, PictureTask, Row, graded, parquet, with_parts

_PARTS = {"human_test": "human", "augmented_test": "augmented"}


@register
@dataclass(frozen=True)
class ChartQA(PictureTask):
    """Relaxed accuracy, in all and of the human and the augmented half of the test split."""

    name: ClassVar[str] = "chartqa"
    summary: ClassVar[str] = "open questions about charts"
    source: ClassVar[str] = "Masry et al., Findings of ACL 2022; lmms-lab/ChartQA"
    metric: ClassVar[str] = "relaxed accuracy"

    def patterns(self) -> Sequence[str]:
        return parquet("test")

    def ask(self, row: Row) -> Iterable[Question]:
        kind, question, answer = row.need("type", "question", "answer")
        if kind not in _PARTS:
            raise ValueError(f"{row.where}: type is one of {', '.join(_PARTS)}; got {kind!r}")
        yield row.ask(question + IN_A_WORD, row.known(answer, "test"), labels={"part": _PARTS[kind]})

    def grade(self, question: Question, raw: str) -> Grade:
        return graded(raw, relaxed(raw, question.answer))

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        return with_parts(self.metric, scored, "part")
