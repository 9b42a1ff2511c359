"""GQA: open questions about relations and attributes, the pictures in a file of their own."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vtprune.bench.files import find_one, need, read_records
from vtprune.bench.question import Grade, Question
from vtprune.bench.tasks.base import register
from vtprune.bench.tasks.picture import IN_A_WORD, PictureTask, Row, graded

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@register
@dataclass(frozen=True)
class GQA(PictureTask):
    """One word or phrase per question, right if it equals the answer but for case and punctuation.

    split: testdev, val or train; the balanced questions of it.
    """

    name: ClassVar[str] = "gqa"
    summary: ClassVar[str] = "open questions about objects, attributes and relations"
    source: ClassVar[str] = "Hudson and Manning, CVPR 2019; lmms-lab/GQA"
    metric: ClassVar[str] = "accuracy"

    split: str = "testdev"

    def patterns(self) -> Sequence[str]:
        return self._places("instructions")

    def _places(self, what: str) -> tuple[str, ...]:
        config = f"{self.split}_balanced_{what}"
        return f"{config}/{self.split}-*.parquet", f"{config}/{self.split}/*.parquet", f"{config}*.parquet"

    def records(self, path: Path) -> Iterator[dict[str, Any]]:
        """The questions, each with its picture from the other file."""
        cells = self._cells()
        for at, record in enumerate(read_records(path)):
            (image,) = need(record, "imageId", where=f"{path.name}, row {at}")
            if str(image) not in cells:
                raise ValueError(f"{path.name}, row {at}: {self.split}_balanced_images has no picture {image!r}")
            yield {**record, "image": cells[str(image)]}

    def later(self, path: Path, row: int, name: str) -> None:
        """Many questions are about few pictures, which do not lie beside them: they are kept."""

    def _cells(self) -> dict[str, Any]:
        """What holds a picture, by its id."""
        cells = {}
        for path in find_one(self.folder, self._places("images")):
            for at, record in enumerate(read_records(path)):
                image, cell = need(record, "id", "image", where=f"{path.name}, row {at}")
                cells[str(image)] = cell
        return cells

    def ask(self, row: Row) -> Iterable[Question]:
        id, question, answer = row.need("id", "question", "answer")
        kinds = row.record.get("types") or {}
        labels = {name: str(kinds[name]) for name in ("structural", "semantic") if kinds.get(name)}
        yield row.ask(question + IN_A_WORD, row.known(answer, self.split), id=str(id), labels=labels)

    def grade(self, question: Question, raw: str) -> Grade:
        return graded(raw, float(_plain(raw) == _plain(question.answer)))


def _plain(text: str) -> str:
    """Lower case, no punctuation, one space between words."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())
