"""NExT-QA, multiple choice: why and how things happen in videos of everyday life, and in which order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vtprune.bench.clip import find, require_any
from vtprune.bench.files import find_one, need, read_records
from vtprune.bench.metrics.choice import lettered
from vtprune.bench.question import Question, Visual
from vtprune.bench.tasks.base import register
from vtprune.bench.tasks.multiple_choice import MultipleChoice, letter_at

PLACES = ("NExTVideo", "videos", "video")
KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}
"""The first letter of a question's type."""

# the wording of lmms-eval
LAST = "Answer with the option's letter from the given choices directly."


@register
@dataclass(frozen=True)
class NextQA(MultipleChoice):
    """``MC/test*.parquet`` or ``test.csv``; ``NExTVideo/<video>.mp4``, or in sub-folders with ``map_vid_vidorID.json``.

    split: "test" or "val".
    """

    name: ClassVar[str] = "nextqa"
    summary: ClassVar[str] = "five options on why, how and in which order things happen"
    source: ClassVar[str] = "Xiao et al., NExT-QA, CVPR 2021, arXiv:2105.08276; data set lmms-lab/NExTQA (MC)"
    visual: ClassVar[Literal["image", "video", "either"]] = "video"
    by: ClassVar[str] = "kind"
    order: ClassVar[tuple[str, ...]] = tuple(KINDS.values())

    split: Literal["test", "val"] = "test"

    def questions(self) -> Iterator[Question]:
        tables, paths = self.files(), self._paths()
        require_any(self.folder, PLACES)
        for path in tables:
            for i, record in enumerate(read_records(path)):
                yield self._question(record, paths, f"{path}, record {i + 1}")

    def files(self) -> list[Path]:
        tables = (f"MC/{self.split}*.parquet", f"{self.split}*.parquet", f"{self.split}.csv", f"*/{self.split}.csv")
        return find_one(self.folder, tables)

    def _paths(self) -> dict[str, str]:
        """Where videos lie that are still in the folders of the data set they were taken from, VidOR, by name."""
        path = self.folder / "map_vid_vidorID.json"
        if not path.exists():
            return {}
        try:
            return {str(name): str(place) for name, place in json.loads(path.read_text(encoding="utf-8")).items()}
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} is no JSON object of video names and paths: {error}") from error

    def _question(self, record: dict[str, Any], paths: dict[str, str], where: str) -> Question:
        video, text, number, kind, answer = need(record, "video", "question", "qid", "type", "answer", where=where)
        options = tuple(str(one).strip() for one in need(record, *(f"a{i}" for i in range(5)), where=where))
        if kind[:1] not in KINDS:
            raise ValueError(f"{where}: the type of a question begins with {', '.join(KINDS)}; got {kind!r}")
        name = str(video)
        tries = [(name, PLACES), *([(paths[name], PLACES)] if name in paths else [])]
        return Question(
            id=f"{name}_{number}",
            text=f"{text.strip()}\n{lettered(options)}\n{LAST}",
            visuals=(Visual("video", find(self.folder, tries)[0], name),),
            answer=letter_at(answer, options, where),
            cluster=name,
            options=options,
            labels={"kind": KINDS[kind[0]], "type": kind},
        )
