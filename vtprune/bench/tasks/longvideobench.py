"""LongVideoBench: multiple choice about a moment of a video of up to one hour that the question refers to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from vtprune.bench.clip import clip, require_any
from vtprune.bench.files import find_one, need, read_records
from vtprune.bench.metrics.choice import lettered
from vtprune.bench.question import Question
from vtprune.bench.tasks.base import register
from vtprune.bench.tasks.multiple_choice import MultipleChoice, letter_at

PLACES = ("videos", "video")
PADDING = "N/A"

# the wording of lmms-eval
LAST = "Answer with the option's letter from the given choices directly."


@register
@dataclass(frozen=True)
class LongVideoBench(MultipleChoice):
    """The validation questions, ``validation-*.parquet`` or ``lvb_val.json``; ``videos/<video_path>``.

    Asked as lmms-eval asks about frames alone. Many questions refer to what is said, which then is not shown: published
    figures with subtitles between the frames are higher and not comparable.
    """

    name: ClassVar[str] = "longvideobench"
    summary: ClassVar[str] = "options about a moment of a video of up to one hour"
    source: ClassVar[str] = "Wu et al., LongVideoBench, NeurIPS 2024, arXiv:2407.15754; longvideobench/LongVideoBench"
    visual: ClassVar[Literal["image", "video", "either"]] = "video"
    by: ClassVar[str] = "duration_group"
    order: ClassVar[tuple[str, ...]] = ("15", "60", "600", "3600")
    """Seconds: from 8 to 15, 15 to 60, 180 to 600, 900 to 3600."""

    def questions(self) -> Iterator[Question]:
        tables = self.files()
        require_any(self.folder, PLACES)
        for path in tables:
            for i, record in enumerate(read_records(path)):
                yield self._question(record, f"{path}, record {i + 1}")

    def files(self) -> list[Path]:
        return find_one(self.folder, ("validation-*.parquet", "*/validation-*.parquet", "lvb_val.json"))

    def _question(self, record: dict[str, Any], where: str) -> Question:
        number, video, text, group, category = need(
            record, "id", "video_path", "question", "duration_group", "question_category", where=where
        )
        options = unpadded(record, where)
        (choice,) = need(record, "correct_choice", where=where)
        labels = {"duration_group": str(group), "question_category": category}
        labels.update({name: str(record[name]) for name in ("topic_category", "level") if record.get(name)})
        return Question(
            id=str(number),
            text=f"{text}\n{lettered(options)}\n{LAST}",
            visuals=(clip(self.folder, video, PLACES),),
            answer=letter_at(choice, options, where),
            cluster=PurePosixPath(video).stem,
            options=options,
            labels=labels,
        )


def unpadded(record: dict[str, Any], where: str) -> tuple[str, ...]:
    """The options: ``candidates``, or ``option0`` to ``option4`` up to the padding at their end."""
    said = record.get("candidates")
    if said is None:
        names = [f"option{i}" for i in range(5)]
        said = [record.get(name) for name in names]
        while said and said[-1] in (PADDING, None):
            said.pop()
        need(record, *(names[: max(len(said), 2)]), where=where)
    options = tuple(str(one) for one in said)
    if PADDING in options or len(options) < 2:
        raise ValueError(f"{where}: {PADDING} fills up options at their end, and two or more are left; got {options}")
    return options
