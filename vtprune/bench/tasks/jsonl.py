"""Questions of one's own: a JSON-lines file of ``{id, image or video, question, options?, answer}``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vtprune.bench.files import find_one, need, read_lines
from vtprune.bench.metrics.choice import lettered, read_letter, unprefixed
from vtprune.bench.metrics.text import exact, normalized, soft
from vtprune.bench.question import LETTERS, Grade, Question, Visual
from vtprune.bench.tasks.base import Scored, Task, register
from vtprune.bench.tasks.picture import BY_LETTER, IN_A_WORD

FIELDS = ("id", "image", "video", "question", "options", "answer", "labels")


@register
@dataclass(frozen=True)
class JSONLines(Task):
    """Questions from ``file`` in ``folder``, one object a line.

    id:       a text or a number, each once.
    image, video: a path, from the folder of the file, or a list of them; one of the two, or both: pictures come first.
    question: without the options and without how to answer, which are added (``as_it_is`` adds nothing).
    options:  two or more texts, with or without letters before them; an open question has none.
    answer:   of options, a letter, the text or the number (from 0) of the right one; else a text or a number, or a list
              of those that are right.
    labels:   what tables may be broken down by, such as {"kind": "chart"}; may be missing.

    file: its name; without one, the folder's only .jsonl file.
    """

    name: ClassVar[str] = "jsonl"
    summary: ClassVar[str] = "your own questions, one JSON object a line"
    source: ClassVar[str] = "a file of yours"
    visual: ClassVar[Literal["image", "video", "either"]] = "either"
    metric: ClassVar[str] = "accuracy"

    file: str = ""
    as_it_is: bool = False

    def files(self) -> list[Path]:
        if self.file:
            path = self.folder / self.file
            if not path.is_file():
                raise ValueError(f"there is no file {path}; jsonl:file=NAME:folder=FOLDER says which one to read")
            return [path]
        found = find_one(self.folder, ["*.jsonl"])
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"{self.folder} has several files: {names}; say which, as in jsonl:file={found[0].name}")
        return found

    def questions(self) -> Iterator[Question]:
        (path,) = self.files()
        lines: dict[str, int] = {}
        for number, record in read_lines(path):
            where = f"{path}, line {number}"
            question = self._question(record, path.parent, where)
            if question.id in lines:
                raise ValueError(
                    f"{where}: the id {question.id!r} is that of line {lines[question.id]} too; give another"
                )
            lines[question.id] = number
            yield question

    def _question(self, record: Mapping[str, Any], folder: Path, where: str) -> Question:
        unknown = [name for name in record if name not in FIELDS]
        if unknown:
            raise ValueError(f"{where} has {', '.join(map(repr, unknown))}; what is read is {', '.join(FIELDS)}")
        id, text, answer = need(record, "id", "question", "answer", where=where)
        if isinstance(id, bool) or not isinstance(id, (str, int)) or not str(id).strip():
            raise ValueError(f"{where}: the id is a text or a whole number; got {id!r}")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: the question is a text; got {text!r}")
        visuals = (*_visuals(record, "image", folder, where), *_visuals(record, "video", folder, where))
        if not visuals:
            raise ValueError(f"{where} has no 'image' and no 'video'; give the path of one, or a list of paths")
        given = _texts(record.get("options") or None, "options", 2, where)
        options = unprefixed(given)
        right = _choice(answer, given, options, where) if options else _texts_of(answer, where)
        if not self.as_it_is:
            text = f"{text}\n{lettered(options)}{BY_LETTER}" if options else text + IN_A_WORD
        cluster = " ".join(visual.name for visual in visuals)
        return Question(str(id), text, visuals, right, cluster, options, _labels(record, where))

    def grade(self, question: Question, raw: str) -> Grade:
        if question.options:
            letter = read_letter(raw, question.options)
            return Grade(letter, float(letter == question.answer))
        return Grade(normalized(raw) or None, max(exact(raw, right) for right in question.answer))

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        """ "accuracy" over all; of open questions "exact match" and "soft match", of others "multiple choice"."""
        open_ones = [one for one in scored if not one.question.options]
        choices = [one for one in scored if one.question.options]
        found = super().metrics(scored)
        if choices and open_ones:
            found["multiple choice"] = _mean([one.grade.score for one in choices])
        if open_ones:
            found["exact match"] = _mean([one.grade.score for one in open_ones])
            found["soft match"] = _mean([_soft(one) for one in open_ones])
        return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _soft(one: Scored) -> float:
    return max(soft(one.grade.parsed or "", right) for right in one.question.answer)


def _visuals(record: Mapping[str, Any], kind: Literal["image", "video"], folder: Path, where: str) -> list[Visual]:
    paths = record.get(kind)
    names = _texts([paths] if isinstance(paths, str) else paths, kind, 1, where)
    return [Visual(kind, folder / name, name) for name in names]


def _texts(value: Any, name: str, least: int, where: str) -> tuple[str, ...]:
    """The texts of a list; none where there is no list."""
    if value is None:
        return ()
    good = isinstance(value, list) and all(isinstance(one, str) and one.strip() for one in value)
    if not good or not least <= len(value):
        what = {"options": "a list of two or more texts", "image": "a path or a list of paths"}
        raise ValueError(f"{where}: {name} is {what.get(name, what['image'])}; got {value!r}")
    if name == "options" and not len(value) <= len(LETTERS):
        raise ValueError(f"{where}: there are letters for {len(LETTERS)} options; got {len(value)}")
    return tuple(value)


def _texts_of(answer: Any, where: str) -> list[str]:
    """The right answers to an open question."""
    several = answer if isinstance(answer, list) else [answer]
    good = [isinstance(one, (str, int, float)) and not isinstance(one, bool) and str(one).strip() for one in several]
    if not several or not all(good):
        raise ValueError(f"{where}: without options the answer is a text, a number, or a list of those; got {answer!r}")
    return [str(one) for one in several]


def _choice(answer: Any, given: Sequence[str], options: Sequence[str], where: str) -> str:
    """The letter of the right option."""
    letters = LETTERS[: len(options)]
    rows: set[int] = set()
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        rows.add(answer)
    elif isinstance(answer, str):
        wanted = answer.strip()
        rows.update(i for i, texts in enumerate(zip(given, options)) if wanted in (text.strip() for text in texts))
        letter = wanted.strip("().:").strip()
        # "a" is read as a letter, unless it is the text of an option
        if len(letter) == 1 and (letter in letters or (letter.upper() in letters and not rows)):
            rows.add(letters.index(letter.upper()))
    if len(rows) == 1:
        return letters[rows.pop()]
    if rows:
        fitting = ", ".join(letters[i] for i in sorted(rows))
        raise ValueError(
            f"{where}: the answer {answer!r} fits options {fitting}; give the number of the right one, from 0"
        )
    raise ValueError(
        f"{where}: the answer is a letter from A to {letters[-1]}, a number from 0 to {len(letters) - 1}, or the text "
        f"of an option; got {answer!r}"
    )


def _labels(record: Mapping[str, Any], where: str) -> dict[str, str]:
    labels = record.get("labels")
    if labels is None:
        return {}
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise ValueError(f'{where}: labels is an object of texts, such as {{"kind": "chart"}}; got {labels!r}')
    return labels
