"""What the picture tasks share: records with a picture each, read from files as they were published."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image

from vtprune.bench.by_label import by_label
from vtprune.bench.files import find_one, need, picture, read_records
from vtprune.bench.question import Grade, Question, Visual, digest
from vtprune.bench.tasks.base import Scored, Task
from vtprune.bench.tasks.stored import Stored

IN_A_WORD = "\nAnswer the question using a single word or phrase."
"""How open questions end, as in LLaVA-1.5 and lmms-eval."""

BY_LETTER = "\nAnswer with the option's letter from the given choices directly."
"""How multiple choice ends, as in LLaVA-1.5 and lmms-eval."""


@dataclass(frozen=True)
class Row:
    """A record of a file and the picture in it.

    number: counts all records of the task's files from 0. where: file and row, for errors.
    seen:   the picture; records that hold the same bytes share one. cluster: a name of these bytes.
    """

    record: Mapping[str, Any]
    number: int
    where: str
    seen: Visual
    cluster: str

    def need(self, *fields: str) -> Sequence[Any]:
        """The values of fields. Raises ValueError that names file, row and the fields that are missing."""
        return need(self.record, *fields, where=self.where)

    def known(self, value: Any, split: str) -> Any:
        """What is right, where it was published. Raises ValueError for what a split without answers holds."""
        if isinstance(value, (str, list)) and not value:
            raise ValueError(
                f"{self.where}: there is no answer; it was not published with every split, got split={split}"
            )
        return value

    def ask(
        self,
        text: str,
        answer: Any,
        *,
        id: str | None = None,
        options: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> Question:
        """A question about the picture; without a published ``id`` it is called by its row."""
        name = str(self.number) if id is None else id
        return Question(name, text, (self.seen,), answer, self.cluster, tuple(options), dict(labels or {}))


@dataclass(frozen=True)
class PictureTask(Task):
    """A task of records that hold a picture: ``patterns`` says in which files, ``ask`` what is asked of a record."""

    visual: ClassVar[Literal["image", "video", "either"]] = "image"

    @abstractmethod
    def patterns(self) -> Sequence[str]:
        """Where the files may lie; the first pattern that matches counts."""

    @abstractmethod
    def ask(self, row: Row) -> Iterable[Question]:
        """The questions of a record. Ids that were given before get "#2", "#3" ... at their end."""

    def records(self, path: Path) -> Iterator[dict[str, Any]]:
        """The records of one of the files."""
        return read_records(path)

    def cell(self, record: Mapping[str, Any], where: str) -> Any:
        """What holds the picture; None if the record is none of this task's."""
        return need(record, "image", where=where)[0]

    def later(self, path: Path, row: int, name: str) -> Callable[[], Image.Image] | None:
        """What reads the picture of a row again when it is shown; None to keep it in memory."""
        return Stored(path, row, self.folder, name) if path.suffix == ".parquet" else None

    def files(self) -> list[Path]:
        return find_one(self.folder, self.patterns())

    def questions(self) -> Iterator[Question]:
        pictures, ids = Pictures(self.folder), Counter()
        numbers = count()
        for path in self.files():
            for row, record in enumerate(self.records(path)):
                number, where = next(numbers), f"{path.name}, row {row}"
                cell = self.cell(record, where)
                if cell is None:
                    continue
                seen, cluster = pictures.share(cell, where, self.later(path, row, where))
                for question in self.ask(Row(record, number, where, seen, cluster)):
                    ids[question.id] += 1
                    times = ids[question.id]
                    yield question if times == 1 else replace(question, id=f"{question.id}#{times}")


@dataclass
class Pictures:
    """The pictures that were seen, so that questions about one share it."""

    folder: Path
    known: dict[str, Visual] = field(default_factory=dict)

    def share(self, cell: Any, name: str, later: Callable[[], Image.Image] | None) -> tuple[Visual, str]:
        """A picture and what it is called as a cluster: sixteen digits of its bytes, or of its file's name.

        cell:  as ``picture`` takes it. name: for errors, if it is new.
        later: reads it again, instead of bytes in memory.
        """
        seen = picture(cell, self.folder, name)
        if isinstance(seen.source, bytes):
            cluster = hashlib.sha256(seen.source).hexdigest()[:16]
            seen = seen if later is None else replace(seen, source=later)
        else:
            cluster = digest(os.path.relpath(seen.source, self.folder))
        return self.known.setdefault(cluster, seen), cluster


def parquet(split: str, config: str = "data") -> tuple[str, ...]:
    """Patterns of a split's parquet files, as uploaded, loose, and as the hub converts them."""
    return (
        f"{config}/{split}-*.parquet",
        f"{split}-*.parquet",
        f"{config}/{split}/*.parquet",
        f"default/{split}/*.parquet",
    )


def graded(raw: str, score: float) -> Grade:
    """The grade of an open answer; where nothing was said it is wrong."""
    words = raw.strip()
    return Grade(words, score) if words else Grade(None, 0.0)


def mean(scored: Sequence[Scored]) -> float:
    return sum(one.grade.score for one in scored) / len(scored)


def groups(scored: Sequence[Scored], key: Callable[[Question], str]) -> dict[str, list[Scored]]:
    """Graded answers by what ``key`` says of their questions, in order of the first appearance."""
    found: dict[str, list[Scored]] = {}
    for one in scored:
        found.setdefault(key(one.question), []).append(one)
    return found


def with_parts(metric: str, scored: Sequence[Scored], label: str) -> dict[str, float]:
    """The mean score of all, then of each value of a label, as "metric, value"."""
    if not scored:
        return {}
    return {metric: mean(scored), **{f"{metric}, {value}": part for value, part in by_label(scored, label).items()}}
