"""What open-ended video tasks share: one file of questions, one of answers, and a word or two as the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from vtprune.bench.by_label import by_label
from vtprune.bench.clip import find, require_any
from vtprune.bench.files import find_one, need, read_records
from vtprune.bench.metrics.text import exact, normalized, soft
from vtprune.bench.question import Grade, Question, Visual
from vtprune.bench.tasks.base import Scored, Task

# the wording of lmms-eval, which asks about ActivityNet-QA
LAST = "Answer the question using a single word or phrase."


@dataclass(frozen=True)
class ShortAnswer(Task):
    """``test_q.json`` and ``test_a.json`` of a folder ``*_Zero_Shot_QA``, or one parquet file with the fields of both.

    Published figures are a paid judge's opinion. Here an answer is right if it is the published one after both are
    normalized; ``metrics`` also says how often the published one is part of it. Neither compares with those figures.
    """

    metric: ClassVar[str] = "exact match"
    visual: ClassVar[Literal["image", "video", "either"]] = "video"
    published: ClassVar[tuple[str, ...]]
    """What the folder of the two files is called."""
    places: ClassVar[tuple[str, ...]]
    """Where videos lie, beside the two files."""
    types: ClassVar[tuple[str, ...]] = ()
    """What the numbers in ``type`` mean; where there are none, questions are told apart by their first word."""

    def questions(self) -> Iterator[Question]:
        table = self.files()[0]
        require_any(table.parent if table.suffix == ".json" else self.folder, self.places)
        seen: dict[str, int] = {}
        for record, where in self._records():
            question = self._question(record, table, where)
            seen[question.id] = seen.get(question.id, 0) + 1
            if seen[question.id] > 1:
                question = replace(question, id=f"{question.id}#{seen[question.id]}")
            yield question

    def files(self) -> list[Path]:
        names = ("test_q.json", *(f"{one}/test_q.json" for one in self.published))
        found = find_one(self.folder, (*names, "*.parquet", "*/*.parquet"))
        return found if found[0].suffix == ".parquet" else [found[0], *find_one(found[0].parent, ("test_a.json",))]

    def grade(self, question: Question, raw: str) -> Grade:
        return Grade(normalized(raw) or None, exact(raw, question.answer))

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Exact match, soft match, and exact match by type of question."""
        if not scored:
            return {}
        part = [soft(one.grade.parsed or "", one.question.answer) for one in scored]
        types = by_label(scored, "type", self.types)
        by_type = {f"{self.metric}, {name}": mean for name, mean in types.items()}
        return {**super().metrics(scored), "soft match": sum(part) / len(part), **by_type}

    def video_names(self, video: str) -> tuple[str, ...]:
        """What the file of a video may be called."""
        return (video,)

    def _records(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Questions with their answers, and where each stands."""
        files = self.files()
        if files[0].suffix == ".json":
            yield from paired(*files)
            return
        for path in files:
            for i, record in enumerate(read_records(path)):
                yield record, f"{path}, record {i + 1}"

    def _question(self, record: dict[str, Any], table: Path, where: str) -> Question:
        video, text, number, answer = need(record, "video_name", "question", "question_id", "answer", where=where)
        folder = table.parent if table.suffix == ".json" else self.folder
        source = find(folder, [(name, self.places) for name in self.video_names(str(video))])[0]
        asked = text.strip()
        if not asked.endswith("?"):
            asked = f"{asked}?"
        return Question(
            id=str(number),
            text=f"{asked} {LAST}",
            visuals=(Visual("video", source, str(video)),),
            answer=str(answer),
            cluster=str(video),
            labels={"type": self._type(record.get("type"), asked, where)},
        )

    def _type(self, number: Any, asked: str, where: str) -> str:
        if not self.types:
            first = asked.split()[0].strip("?").lower()
            return first if first in ("what", "who", "how", "when", "where") else "other"
        text = str(number).strip()
        if not text.isdecimal() or int(text) >= len(self.types):
            raise ValueError(f"{where}: type is a number from 0 to {len(self.types) - 1}; got {number!r}")
        return self.types[int(text)]


def paired(asked: Path, answered: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Each record of the questions with the answers' record of the same ``question_id``.

    Files without ids in the answers, or with the same ids in the same order, are paired by their order.
    Raises ValueError for a question without answer, and for answers that cannot be told apart.
    """
    questions, answers = list(read_records(asked)), list(read_records(answered))
    ids = [need(one, "question_id", where=f"{asked}, record {i + 1}")[0] for i, one in enumerate(questions)]
    named = [one.get("question_id") for one in answers]
    if named != ids and any(name is not None for name in named):
        by_id = {name: one for name, one in zip(named, answers)}
        if len(by_id) < len(answers):
            raise ValueError(f"{answered} has {len(answers) - len(by_id)} answers with the question_id of another one")
        lacking = [name for name in ids if name not in by_id]
        if lacking:
            raise ValueError(f"{answered} has no answer to {len(lacking)} questions of {asked.name}: {lacking[0]!r}")
        answers = [by_id[name] for name in ids]
    elif len(answers) != len(questions):
        raise ValueError(
            f"{asked} has {len(questions)} questions and {answered.name} {len(answers)} answers without ids"
        )
    for i, (question, answer) in enumerate(zip(questions, answers)):
        yield {**answer, **question}, f"{asked}, record {i + 1}"
