"""RefCOCO: where in the picture is what a phrase describes? The answer is a box."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from PIL import Image

from vtprune.bench.files import picture
from vtprune.bench.metrics.box import Box, iou, read_box
from vtprune.bench.question import Grade, Question, Visual
from vtprune.bench.tasks.base import Scored, register
from vtprune.bench.tasks.picture import PictureTask, Row, mean, parquet
from vtprune.images import FORMATS

Scale = Literal["0-1", "0-1000", "pixels"]

BOX = "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, bottom-right y)."
UNITS: dict[str, str] = {
    "0-1": "All values are floating point numbers bounded between 0 and 1.",
    "0-1000": "All values are integers between 0 and 1000.",
    "pixels": "All values are pixels of the image.",
}
PHRASE = "Please provide the bounding box coordinate of the region this sentence describes: "


@register
@dataclass(frozen=True)
class RefCOCO(PictureTask):
    """Right if the intersection over union with the annotated box is a half or more; each phrase is a question.

    scale:    the unit of the model's boxes: "0-1" (the prompt is that of lmms-eval), "0-1000" (Qwen2-VL, Qwen3-VL,
              InternVL) or "pixels" (Qwen2.5-VL); in the prompt only the sentence about units differs. Numbers are read
              in this unit alone: a model that answers in another one is wrong.
    multiple: of "pixels": the model sees the picture with both sides rounded to multiples of this: 28 for Qwen2.5-VL,
              1 for the picture as it is. A model that is shown a much smaller picture, as by a control or a
              processor's limit, answers in ITS pixels, which are not known here: compare those by another scale.
    split:    val, test, testA or testB. RefCOCO+ and RefCOCOg have the same format.
    """

    name: ClassVar[str] = "refcoco"
    summary: ClassVar[str] = "the box around what a phrase describes (grounding)"
    source: ClassVar[str] = "Kazemzadeh et al., EMNLP 2014, Yu et al., ECCV 2016; lmms-lab/RefCOCO"
    metric: ClassVar[str] = "accuracy at IoU 0.5"
    max_new_tokens: ClassVar[int] = 64

    scale: Scale = "0-1"
    multiple: int = 1
    split: str = "val"

    def __post_init__(self) -> None:
        if self.scale not in UNITS:
            raise ValueError(f"scale is one of {', '.join(UNITS)}; got {self.scale!r}")
        if self.multiple < 1:
            raise ValueError(f"multiple is 1 or more pixels; got {self.multiple}")

    def patterns(self) -> Sequence[str]:
        return parquet(self.split)

    def ask(self, row: Row) -> Iterable[Question]:
        id, phrases, box = row.need("question_id", "answer", "bbox")
        if len(box) != 4:
            raise ValueError(f"{row.where}: bbox is left, top, width and height; got {list(box)}")
        left, top, width, height = map(float, box)
        answer = {
            "box": [left, top, left + width, top + height],
            "size": _size(picture(row.record["image"], self.folder, row.where)),
        }
        phrases = [phrases] if isinstance(phrases, str) else row.known(phrases, self.split)
        for number, phrase in enumerate(phrases):
            text = f"{BOX} {UNITS[self.scale]} {PHRASE}{phrase}"
            yield row.ask(text, answer, id=f"{id}/{number}", labels={"scale": self.scale})

    def grade(self, question: Question, raw: str) -> Grade:
        """``parsed`` is the box as fractions of the picture's sides, whatever the unit."""
        said, size = read_box(raw), question.answer["size"]
        if said is None or size is None:
            return Grade(None, 0.0)
        left, top, right, bottom = (n / unit for n, unit in zip(said, self._units(size) * 2, strict=True))
        parsed = f"[{left:.6f}, {top:.6f}, {right:.6f}, {bottom:.6f}]"
        return Grade(parsed, float(iou((left, top, right, bottom), _fractions(question)) >= 0.5))

    def _units(self, size: Sequence[int]) -> tuple[float, float]:
        """How many units the picture is wide and high."""
        if self.scale == "pixels":
            width, height = (max(1, round(side / self.multiple)) * self.multiple for side in size)
            return width, height
        return (1.0, 1.0) if self.scale == "0-1" else (1000.0, 1000.0)

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Accuracy at IoU 0.5, and the mean IoU, in which an answer without a box has 0."""
        if not scored:
            return {}
        return {self.metric: mean(scored), "mean IoU": sum(map(_overlap, scored)) / len(scored)}


def _overlap(one: Scored) -> float:
    said = read_box(one.grade.parsed or "")
    return 0.0 if said is None else iou(said, _fractions(one.question))


def _fractions(question: Question) -> Box:
    """The annotated box as fractions of the picture's sides."""
    width, height = question.answer["size"]
    left, top, right, bottom = question.answer["box"]
    return left / width, top / height, right / width, bottom / height


def _size(seen: Visual) -> list[int] | None:
    """Width and height by the file's header; None if it cannot be read, and then neither can the picture."""
    file = io.BytesIO(seen.source) if isinstance(seen.source, bytes) else seen.source
    try:
        with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            return list(image.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
