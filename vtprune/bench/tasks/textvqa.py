"""TextVQA: open questions about text in pictures; with or without OCR tokens in the prompt: two protocols."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtprune.bench.metrics.vqa import vqa_accuracy
from vtprune.bench.question import Grade, Question
from vtprune.bench.tasks.base import Scored, register
from vtprune.bench.tasks.picture import IN_A_WORD, PictureTask, Row, graded, mean, parquet


@register
@dataclass(frozen=True)
class TextVQA(PictureTask):
    """VQA accuracy over ten answers.

    ocr:   whether the prompt lists the words that an OCR system found, as LLaVA-1.5 did. Figures with them and without
           are those of TWO PROTOCOLS and cannot be compared: the revision, the labels and the metric's name tell.
    split: validation or train; the answers of test are not public.

    Questions are capitalised (the first letter large, all others small), as in LLaVA-1.5 and lmms-eval.
    """

    name: ClassVar[str] = "textvqa"
    summary: ClassVar[str] = "open questions about text in pictures, ten answers each"
    source: ClassVar[str] = "Singh et al., CVPR 2019; lmms-lab/textvqa"
    metric: ClassVar[str] = "VQA accuracy"
    max_new_tokens: ClassVar[int] = 32

    ocr: bool = False
    split: str = "validation"

    def patterns(self) -> Sequence[str]:
        return parquet(self.split)

    def ask(self, row: Row) -> Iterable[Question]:
        id, question, answers = row.need("question_id", "question", "answers")
        hint = ""
        if self.ocr:
            (tokens,) = row.need("ocr_tokens")
            hint = f"\nReference OCR token: {', '.join(tokens or ())}"
        labels = {"protocol": "with OCR tokens" if self.ocr else "without OCR tokens"}
        text = question.capitalize() + hint + IN_A_WORD
        yield row.ask(text, list(row.known(answers, self.split)), id=str(id), labels=labels)

    def grade(self, question: Question, raw: str) -> Grade:
        return graded(raw, vqa_accuracy(raw, question.answer))

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        if not scored:
            return {}
        return {self.metric + (" with OCR tokens" if self.ocr else ""): mean(scored)}
