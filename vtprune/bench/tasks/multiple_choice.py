"""What multiple-choice tasks share: the answer is a letter, which the model's words name or do not name."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vtprune.bench.by_label import by_label
from vtprune.bench.metrics.choice import read_letter
from vtprune.bench.question import LETTERS, Grade, Question
from vtprune.bench.tasks.base import Scored, Task


@dataclass(frozen=True)
class MultipleChoice(Task):
    """A task whose ``Question.answer`` is a letter. Words that name no letter, or several, are wrong."""

    metric: ClassVar[str] = "accuracy"
    by: ClassVar[str] = ""
    """The label that published tables are broken down by."""
    order: ClassVar[tuple[str, ...]] = ()
    """Its values in the order of the published tables."""

    def grade(self, question: Question, raw: str) -> Grade:
        letter = read_letter(raw, question.options)
        return Grade(letter, float(letter == question.answer))

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Accuracy over all questions, and over those of each kind as "accuracy, <kind>"."""
        return {**super().metrics(scored), **self.parts(scored)}

    def parts(self, scored: Sequence[Scored]) -> dict[str, float]:
        """The accuracy on questions of each kind."""
        means = by_label(scored, self.by, self.order)
        return {f"{self.metric}, {kind}": mean for kind, mean in means.items()}

    def mean_of_parts(self, name: str, scored: Sequence[Scored]) -> dict[str, float]:
        """The mean of the kinds' accuracies, by the name it is published under, then each of them."""
        parts = self.parts(scored)
        return {name: sum(parts.values()) / len(parts), **parts} if parts else {}


def listed(options: Any, where: str) -> tuple[str, ...]:
    """Options as a list, or as a table's cell holds one: "['A. x', 'B. y']"."""
    if isinstance(options, str):
        try:
            options = ast.literal_eval(options)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"{where}: the options are no list of texts: {options[:80]!r}") from error
    if not isinstance(options, (list, tuple)) or not options or not all(isinstance(one, str) for one in options):
        raise ValueError(f"{where}: the options are no list of texts: {options!r}")
    return tuple(options)


def letter_said(answer: Any, options: Sequence[str], where: str) -> str:
    """A published letter, such as "b" or "B." -> "B". Raises ValueError for what is no option's letter."""
    letter = str(answer).strip().strip("().").upper()
    if len(letter) != 1 or letter not in LETTERS[: len(options)]:
        raise ValueError(
            f"{where}: the answer is a letter from A to {LETTERS[len(options) - 1]}; got {answer!r}. "
            "Answers of some splits are not published: take the one that has them"
        )
    return letter


def letter_at(index: Any, options: Sequence[str], where: str) -> str:
    """The letter of an option's number, counted from 0, as a number or as text."""
    text = str(index).strip()
    if isinstance(index, bool) or not text.isdecimal() or int(text) >= len(options):
        raise ValueError(
            f"{where}: the answer is an option's number from 0 to {len(options) - 1}; got {index!r}. "
            "Answers of some splits are not published: take the one that has them"
        )
    return LETTERS[int(text)]


def letter_of(text: Any, options: Sequence[str], where: str) -> str:
    """The letter of the option that says this, the first of equal ones."""
    wanted = str(text).strip()
    for letter, option in zip(LETTERS, options):
        if option.strip() == wanted:
            return letter
    raise ValueError(f"{where}: the answer is one of the options {list(options)}; got {text!r}")
