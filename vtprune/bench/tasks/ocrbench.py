"""OCRBench: 1000 questions that can only be answered by reading what is written in the picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtprune.bench.question import Grade, Question
from vtprune.bench.tasks.base import Scored, register
from vtprune.bench.tasks.picture import PictureTask, Row, graded, parquet, with_parts

_FORMULAS = "HME100k"

PARTS = {
    "Regular Text Recognition": "text recognition",
    "Irregular Text Recognition": "text recognition",
    "Artistic Text Recognition": "text recognition",
    "Handwriting Recognition": "text recognition",
    "Digit String Recognition": "text recognition",
    "Non-Semantic Text Recognition": "text recognition",
    "Scene Text-centric VQA": "scene text VQA",
    "Doc-oriented VQA": "document VQA",
    "Key Information Extraction": "key information",
    "Handwritten Mathematical Expression Recognition": "handwritten formulas",
}
"""Which of the five published parts a ``question_type`` counts for."""


@register
@dataclass(frozen=True)
class OCRBench(PictureTask):
    """Right if one of the answers is contained in what was said.

    Case does not count and line breaks are spaces. Of handwritten formulas (the data set HME100k) case counts and all
    spaces are taken out, as in the authors' code; lmms-eval makes what was said lower case there too, so that no
    formula with a capital letter can be right.
    """

    name: ClassVar[str] = "ocrbench"
    summary: ClassVar[str] = "reading: text, documents, forms, formulas"
    source: ClassVar[str] = "Liu et al., Science China Information Sciences 2024; echo840/OCRBench"
    metric: ClassVar[str] = "accuracy"
    max_new_tokens: ClassVar[int] = 128

    def patterns(self) -> Sequence[str]:
        return parquet("test")

    def ask(self, row: Row) -> Iterable[Question]:
        origin, question, kind, answer = row.need("dataset", "question", "question_type", "answer")
        if kind not in PARTS:
            raise ValueError(f"{row.where}: question_type is one of {', '.join(PARTS)}; got {kind!r}")
        answers = [answer] if isinstance(answer, str) else list(row.known(answer, "test"))
        labels = {"part": PARTS[kind], "type": kind, "dataset": origin}
        yield row.ask(question.strip(), answers, labels=labels)

    def grade(self, question: Question, raw: str) -> Grade:
        plain = _without_spaces if question.labels["dataset"] == _FORMULAS else _lower
        found = any(plain(answer) in plain(raw) for answer in question.answer)
        return graded(raw, float(found))

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        """The number of right answers, "of" how many, as published for 1000; then the shares of the parts."""
        if not scored:
            return {}
        right = sum(one.grade.score for one in scored)
        return {f"right of {len(scored)}": right, **with_parts(self.metric, scored, "part")}


def _lower(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _without_spaces(text: str) -> str:
    return text.strip().replace("\n", "").replace(" ", "")
