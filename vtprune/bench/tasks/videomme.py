"""Video-MME: 2,700 questions with four options about 900 videos of eleven seconds to one hour."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vtprune.bench.clip import clip, require_any
from vtprune.bench.files import find_one, need, read_records
from vtprune.bench.metrics.choice import lettered, unprefixed
from vtprune.bench.question import Question
from vtprune.bench.tasks.base import register
from vtprune.bench.tasks.multiple_choice import MultipleChoice, letter_said, listed

PLACES = ("data", "video", "videos")

# the wording of the benchmark's own evaluation
ASKED = (
    "Select the best answer to the following multiple-choice question based on the video{and_subtitles}. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)
SUBTITLES = "This video's subtitles are listed below:"
LAST = "The best answer is:"


@register
@dataclass(frozen=True)
class VideoMME(MultipleChoice):
    """``videomme/*.parquet``, or ``Video-MME.tsv`` as VLMEvalKit writes it; ``data/<videoID>.mp4``.

    subtitles: put the text of ``subtitle/<videoID>.srt`` before the question. Published runs put only what is said at
               the frames that are shown; here it is all of it, since the question does not know the frames. A video
               without such a file is asked about without.
    """

    name: ClassVar[str] = "videomme"
    summary: ClassVar[str] = "four options about short, medium and long videos of all kinds"
    source: ClassVar[str] = "Fu et al., Video-MME, CVPR 2025, arXiv:2405.21075; data set lmms-lab/Video-MME"
    visual: ClassVar[Literal["image", "video", "either"]] = "video"
    by: ClassVar[str] = "duration"
    order: ClassVar[tuple[str, ...]] = ("short", "medium", "long")

    subtitles: bool = False

    def questions(self) -> Iterator[Question]:
        tables = self._tables()
        require_any(self.folder, PLACES)
        if self.subtitles and not (self.folder / "subtitle").is_dir():
            raise ValueError(f"{self.folder} has no folder subtitle; unpack subtitle.zip there, or leave subtitles out")
        for path in tables:
            for i, record in enumerate(read_records(path)):
                yield self._question(record, f"{path}, record {i + 1}")

    def files(self) -> list[Path]:
        return [*self._tables(), *(sorted((self.folder / "subtitle").glob("*.srt")) if self.subtitles else ())]

    def _tables(self) -> list[Path]:
        return find_one(self.folder, ("videomme/*.parquet", "*.parquet", "Video-MME*.tsv", "*.tsv"))

    def _question(self, record: dict[str, Any], where: str) -> Question:
        names = ("videoID", "question_id", "options") if "videoID" in record else ("video", "index", "candidates")
        video, number, said = need(record, *names, where=where)
        text, answer, duration, domain, task_type = need(
            record, "question", "answer", "duration", "domain", "task_type", where=where
        )
        options = unprefixed(listed(said, where))
        labels = {"duration": duration, "domain": domain, "task_type": task_type}
        if record.get("sub_category"):
            labels["sub_category"] = record["sub_category"]
        return Question(
            id=str(number),
            text=self._text(video, text, options),
            visuals=(clip(self.folder, video, PLACES),),
            answer=letter_said(answer, options, where),
            cluster=video,
            options=options,
            labels=labels,
        )

    def _text(self, video: str, question: str, options: tuple[str, ...]) -> str:
        said = self._said(video) if self.subtitles else ""
        asked = ASKED.format(and_subtitles=" and the subtitles" if said else "")
        before = [SUBTITLES, said] if said else []
        return "\n".join([*before, asked, question, lettered(options), LAST])

    def _said(self, video: str) -> str:
        path = self.folder / "subtitle" / f"{video}.srt"
        return spoken(path.read_text(encoding="utf-8-sig", errors="replace")) if path.exists() else ""


def spoken(srt: str) -> str:
    """The lines of a SubRip file without numbers, times and marks of fonts, each once where it is repeated at once."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", srt.replace("\r\n", "\n").replace("\r", "\n")):
        rows = block.strip().split("\n")
        times = next((i for i, row in enumerate(rows) if "-->" in row), None)
        for row in rows[times + 1 :] if times is not None else ():
            text = re.sub(r"<[^>]*>", "", row).strip()
            if text and (not lines or lines[-1] != text):
                lines.append(text)
    return "\n".join(lines)
