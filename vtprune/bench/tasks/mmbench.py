"""MMBench: multiple choice, each question once more for every rotation of its options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vtprune.bench.files import need, read_records
from vtprune.bench.metrics.choice import lettered
from vtprune.bench.question import LETTERS, Question
from vtprune.bench.tasks.base import Scored, register
from vtprune.bench.tasks.multiple_choice import MultipleChoice, letter_said
from vtprune.bench.tasks.picture import BY_LETTER, PictureTask, Row, groups, mean, parquet

_ROTATION = 1_000_000
_BLANK = ("", "nan")
# a shorter text is no picture in base64
_LONGEST_INDEX = 64


@register
@dataclass(frozen=True)
class MMBench(MultipleChoice, PictureTask):
    """Accuracy. The published figure is circular: a question counts if it is right under EVERY rotation of its options.

    Rotations are rows of their own, 1,000,000 further in ``index`` each. The parquet files of lmms-eval are read, and
    the TSV files of VLMEvalKit, in which a picture that was given before may only be named, by the index of its row.

    split:    dev; the answers of test are not public. language: of the questions.
    """

    name: ClassVar[str] = "mmbench"
    summary: ClassVar[str] = "multiple choice on twenty abilities, rotated options"
    source: ClassVar[str] = "Liu et al., ECCV 2024; lmms-lab/MMBench, VLMEvalKit MMBench_DEV_EN.tsv"
    by: ClassVar[str] = "ability"

    split: str = "dev"
    language: Literal["en", "cn"] = "en"

    def patterns(self) -> Sequence[str]:
        table = f"MMBench_{self.split}_{self.language}".upper().replace("MMBENCH", "MMBench")
        return (*parquet(self.split, self.language), *parquet(self.split), f"{table}.tsv", f"{table}_V11.tsv")

    def records(self, path: Path) -> Iterator[dict[str, Any]]:
        """The rows; where a picture is only named, with the picture of the row that it names."""
        given: dict[str, str] = {}
        for at, record in enumerate(read_records(path)):
            index, cell = need(record, "index", "image", where=f"{path.name}, row {at}")
            if isinstance(cell, str) and len(cell) > _LONGEST_INDEX:
                given[str(index)] = cell
            elif isinstance(cell, str):
                if cell not in given:
                    raise ValueError(f"{path.name}, row {at}: no row before it has the index {cell!r} and a picture")
                record = {**record, "image": given[cell]}
            yield record

    def ask(self, row: Row) -> Iterable[Question]:
        index, question, answer = row.need("index", "question", "answer")
        if not str(index).isdecimal():
            raise ValueError(f"{row.where}: index is a whole number, of rotations plus 1,000,000 each; got {index!r}")
        options = [row.record[letter] for letter in "ABCDEFGHI" if not _blank(row.record.get(letter))]
        if len(options) < 2 or any(_blank(row.record.get(letter)) for letter in LETTERS[: len(options)]):
            raise ValueError(f"{row.where}: options are two or more, from A on and without a gap; got {options}")
        hint = row.record.get("hint")
        asked = question if _blank(hint) else f"{hint} {question}"
        # an empty line before how to answer, as in lmms-eval
        text = f"{asked} There are several options:\n{lettered(options)}\n{BY_LETTER}"
        right = letter_said(answer, options, row.where)
        record = row.record
        ability = {"ability": record.get("category"), "group": record.get("l2-category") or record.get("L2-category")}
        labels = {name: str(value) for name, value in ability.items() if not _blank(value)}
        yield row.ask(text, right, id=str(index), options=options, labels=labels)

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Circular accuracy over the rotations that were asked, then accuracy over all rows, and by ability."""
        if not scored:
            return {}
        questions = groups(scored, _unrotated).values()
        circular = sum(mean(rotations) == 1 for rotations in questions) / len(questions)
        return {"circular accuracy": circular, **super().metrics(scored)}


def _unrotated(question: Question) -> str:
    """The index of the question as it was before its options were rotated."""
    return str(int(question.id.partition("#")[0]) % _ROTATION)


def _blank(cell: Any) -> bool:
    """Whether a cell says nothing: tables that went through pandas have "nan" there, or the number."""
    return cell is None or str(cell).strip().lower() in _BLANK
