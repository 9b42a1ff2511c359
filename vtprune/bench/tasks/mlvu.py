"""MLVU: multiple choice about long videos, of three minutes to two hours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from vtprune.bench.clip import clip
from vtprune.bench.files import find_one, need, read_records
from vtprune.bench.metrics.choice import lettered
from vtprune.bench.question import Question
from vtprune.bench.tasks.base import Scored, register
from vtprune.bench.tasks.multiple_choice import MultipleChoice, letter_of, letter_said

PLACES = ("video", "videos", "MLVU/video", ".")

# the wording of lmms-eval; the bracket is left open for the model to go on
LAST = "Only give the best option.\nBest option: ("

# "(A) Yellow" in a line of its own
OPTION = re.compile(r"^\s*\(?([A-Z])[).]\s*(.+?)\s*$")


@register
@dataclass(frozen=True)
class MLVU(MultipleChoice):
    """``*.parquet`` with the options inside the question, or ``json/*.json`` as first published, with ``candidates``.

    The questions of two files, scene captions and summaries, have no options and are left out.
    """

    name: ClassVar[str] = "mlvu"
    summary: ClassVar[str] = "options about long videos: plots, needles, counts, orders, topics"
    source: ClassVar[str] = "Zhou et al., MLVU, CVPR 2025, arXiv:2406.04264; data sets sy1998/MLVU_dev, MLVU/MVLU"
    visual: ClassVar[Literal["image", "video", "either"]] = "video"
    by: ClassVar[str] = "task_type"

    def questions(self) -> Iterator[Question]:
        for path in self.files():
            for i, record in enumerate(read_records(path)):
                if "video_name" in record or "candidates" in record:
                    yield self._question(path, i, record)

    def files(self) -> list[Path]:
        patterns = ("*.parquet", "data/*.parquet", "*/*.parquet", "json/*.json", "MLVU/json/*.json")
        return find_one(self.folder, patterns)

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        """M-Avg, the mean of the accuracies of the kinds of questions; then each of these."""
        return self.mean_of_parts("M-Avg", scored)

    def _question(self, path: Path, i: int, record: dict[str, Any]) -> Question:
        where = f"{path}, record {i + 1}"
        kind_field = "task_type" if "task_type" in record else "question_type"
        video_field = "video_name" if "video_name" in record else "video"
        video, text, answer, kind = need(record, video_field, "question", "answer", kind_field, where=where)
        asked, inside = split_options(text)
        options = inside or tuple(str(one) for one in record.get("candidates") or ())
        if len(options) < 2:
            raise ValueError(f"{where}: there are no options in the question and no candidates: {text[:80]!r}")
        said = str(answer).strip()
        # an option may be called "A" too; then options inside the question mean a letter, and candidates a text
        as_text = said in options and not (inside and len(said) == 1)
        letter = letter_of(said, options, where) if as_text else letter_said(said, options, where)
        return Question(
            id=f"{kind}-{i}",
            text=f"{asked}\n{lettered(options, '(A) ')}\n{LAST}",
            visuals=(clip(self.folder, video, self._places(path)),),
            answer=letter,
            cluster=PurePosixPath(video).stem,
            options=options,
            labels={"task_type": kind},
        )

    def _places(self, path: Path) -> list[str]:
        """The video of ``json/1_plotQA.json`` lies in ``video/1_plotQA``; of a parquet file in any such folder."""
        if path.suffix == ".json":
            return [f"{place}/{path.stem}" for place in PLACES[:3]] + list(PLACES)
        return [*PLACES, *(f"video/{one.name}" for one in sorted((self.folder / "video").glob("*")) if one.is_dir())]


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """The question and its options where they stand in lines of their own, A first; else the text and nothing."""
    lines = text.strip().split("\n")
    for first in range(1, len(lines)):
        found = [OPTION.match(line) for line in lines[first:]]
        if all(found) and [one[1] for one in found] == [chr(ord("A") + i) for i in range(len(found))]:
            return "\n".join(lines[:first]), tuple(one[2] for one in found)
    return text.strip(), ()
