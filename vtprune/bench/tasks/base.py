"""What a task is: questions read from a folder in the format they were published in, and how answers are graded."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vtprune.bench.question import Grade, Question

TASKS: dict[str, type[Task]] = {}
"""Task classes by name, filled by ``register``."""


@dataclass(frozen=True)
class Scored:
    """An answer that was graded, for metrics over many. ``grade.parsed`` and ``score`` are None and 0 of a failure."""

    question: Question
    grade: Grade


@dataclass(frozen=True)
class Task(ABC):
    """A task; its fields are its options.

    folder: where its files lie, as published. Generated tasks ignore it.
    """

    name: ClassVar[str]
    """How the command line calls it."""
    summary: ClassVar[str]
    """One line: what is asked."""
    source: ClassVar[str]
    """Paper, and the data set's name where it is published."""
    visual: ClassVar[Literal["image", "video", "either"]]
    metric: ClassVar[str]
    """The name of what ``grade`` scores: "accuracy", "VQA accuracy", "ANLS" ..."""
    max_new_tokens: ClassVar[int] = 16
    """How long an answer may be."""

    folder: Path

    @abstractmethod
    def questions(self) -> Iterator[Question]:
        """All questions in the order of the files. Raises ValueError where a file is not in the published format."""

    @abstractmethod
    def grade(self, question: Question, raw: str) -> Grade:
        """What the model's words are worth. Words that cannot be read are wrong; nothing is guessed."""

    def metrics(self, scored: Sequence[Scored]) -> dict[str, float]:
        """The published figures over all answers, by name, the main one first; all between 0 and 1 unless named so."""
        return {self.metric: sum(one.grade.score for one in scored) / len(scored)} if scored else {}

    def files(self) -> list[Path]:
        """The files that say what is asked; not the pictures and videos."""
        return []

    def revision(self) -> str:
        """Sixteen digits that change when a question may have changed."""
        sha = hashlib.sha256(repr((type(self).__name__, self.own_options())).encode())
        for path in self.files():
            sha.update(path.name.encode())
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    sha.update(chunk)
        return sha.hexdigest()[:16]

    def own_options(self) -> Mapping[str, Any]:
        """The options by name; where the files lie is none."""
        return {name: value for name, value in vars(self).items() if name != "folder"}


def register(task: type[Task]) -> type[Task]:
    """Class decorator: the command line finds the task by its name."""
    if task.name in TASKS:
        raise ValueError(f"there are two tasks {task.name!r}: {TASKS[task.name].__name__} and {task.__name__}")
    TASKS[task.name] = task
    return task
