"""EgoSchema: five options about three minutes of somebody's day, filmed from the head."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vtprune.bench.clip import clip, require_any
from vtprune.bench.files import find_one, need, read_records
from vtprune.bench.metrics.choice import lettered, unprefixed
from vtprune.bench.question import Question
from vtprune.bench.tasks.base import register
from vtprune.bench.tasks.multiple_choice import MultipleChoice, letter_at, listed

PLACES = ("videos", "good_clips_git", "video")
N_OPTIONS = 5

# the wording of lmms-eval
LAST = "Answer with the option's letter from the given choices directly."


@register
@dataclass(frozen=True)
class EgoSchema(MultipleChoice):
    """The 500 questions whose answers are published: ``Subset/*.parquet``, or ``questions.json`` with
    ``subset_answers.json``; ``videos/<id>.mp4``. The others are graded by a server only, and left out.
    """

    name: ClassVar[str] = "egoschema"
    summary: ClassVar[str] = "five options about three minutes filmed from somebody's head"
    source: ClassVar[str] = "Mangalam et al., EgoSchema, NeurIPS 2023, arXiv:2308.09126; data set lmms-lab/egoschema"
    visual: ClassVar[Literal["image", "video", "either"]] = "video"

    def questions(self) -> Iterator[Question]:
        tables = self.files()
        require_any(self.folder, PLACES)
        if tables[0].name == "questions.json":
            yield from self._first_published(*tables)
            return
        for path in tables:
            for i, record in enumerate(read_records(path)):
                where = f"{path}, record {i + 1}"
                video, text, said, answer = need(record, "video_idx", "question", "option", "answer", where=where)
                yield self._question(video, text, unprefixed(listed(said, where)), answer, where)

    def files(self) -> list[Path]:
        tables = find_one(self.folder, ("Subset/*.parquet", "subset/*.parquet", "questions.json"))
        return tables if tables[0].suffix == ".parquet" else [*tables, *find_one(self.folder, ("subset_answers.json",))]

    def _first_published(self, asked: Path, answered: Path) -> Iterator[Question]:
        answers = answers_of(answered)
        for i, record in enumerate(read_records(asked)):
            where = f"{asked}, record {i + 1}"
            video, text, *options = need(
                record, "q_uid", "question", *(f"option {n}" for n in range(N_OPTIONS)), where=where
            )
            if video in answers:
                yield self._question(video, text, tuple(options), answers[video], f"{answered}, {video}")

    def _question(self, video: str, text: str, options: tuple[str, ...], answer: Any, where: str) -> Question:
        return Question(
            id=video,
            text=f"{text}\n{lettered(options)}\n{LAST}",
            visuals=(clip(self.folder, video, PLACES),),
            answer=letter_at(answer, options, where),
            cluster=video,
            options=options,
        )


def answers_of(path: Path) -> dict[str, Any]:
    """{question: number of the option}."""
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(answers, dict):
        raise ValueError(f"{path} holds answers by question, {{id: number}}; got a {type(answers).__name__}")
    return answers
