"""SEED-Bench: multiple choice about pictures in nine dimensions; its questions about videos are left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vtprune.bench.files import need
from vtprune.bench.metrics.choice import lettered
from vtprune.bench.question import Question
from vtprune.bench.tasks.base import register
from vtprune.bench.tasks.multiple_choice import MultipleChoice, letter_said
from vtprune.bench.tasks.picture import BY_LETTER, PictureTask, Row, parquet


@register
@dataclass(frozen=True)
class SeedBench(MultipleChoice, PictureTask):
    """Accuracy, in all and by dimension, called by its published number."""

    name: ClassVar[str] = "seed"
    summary: ClassVar[str] = "multiple choice about pictures, nine dimensions"
    source: ClassVar[str] = "Li et al., CVPR 2024; lmms-lab/SEED-Bench"
    by: ClassVar[str] = "dimension"
    order: ClassVar[tuple[str, ...]] = tuple(str(number) for number in range(1, 10))

    def patterns(self) -> Sequence[str]:
        return parquet("test")

    def cell(self, record: Mapping[str, Any], where: str) -> Any:
        """A list of one picture; the frames of a video are a list too, of many."""
        kind, cells = need(record, "data_type", "image", where=where)
        if kind != "image":
            return None
        if isinstance(cells, list):
            if len(cells) != 1:
                raise ValueError(f"{where}: a question of data_type image has one picture; got {len(cells)}")
            return cells[0]
        return cells

    def ask(self, row: Row) -> Iterable[Question]:
        id, question, answer, kind = row.need("question_id", "question", "answer", "question_type_id")
        options = row.need("choice_a", "choice_b", "choice_c", "choice_d")
        text = f"{question}\n{lettered(options)}{BY_LETTER}"
        right = letter_said(answer, options, row.where)
        yield row.ask(text, right, id=str(id), options=options, labels={"dimension": str(kind)})
