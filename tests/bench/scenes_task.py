"""A task for tests: held-out scenes of the embedded image model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtprune.bench.question import Grade, Question, Visual
from vtprune.bench.tasks import Task
from vtprune.embedded.evaluate import Asked, held_out


def question_of(i: int, asked: Asked, **more) -> Question:
    """The i-th question; ``more`` replaces its fields."""
    picture = Visual("image", lambda: asked.picture, f"scene {asked.scene}")
    fields = {"id": str(i), "text": asked.question.text, "visuals": (picture,), "answer": asked.question.answer}
    return Question(**{**fields, "cluster": str(asked.scene), "labels": {"kind": asked.question.kind}, **more})


@dataclass(frozen=True)
class Scenes(Task):
    """Questions that are given, graded by equality."""

    name = "scenes"
    summary = "scenes for tests"
    source = "generated"
    visual = "image"
    metric = "accuracy"
    max_new_tokens = 4

    folder: Path = Path()
    asked: Sequence[Question] = field(default=())

    def questions(self) -> Iterator[Question]:
        yield from self.asked

    def grade(self, question: Question, raw: str) -> Grade:
        return Grade(raw, float(raw == question.answer))


def some_questions(n: int) -> list[Question]:
    """The first questions about two held-out scenes, taken from both in turn."""
    asked = held_out(2)
    first = [one for one in asked if one.scene == 0]
    second = [one for one in asked if one.scene == 1]
    return [question_of(i, one) for i, one in enumerate([one for pair in zip(first, second) for one in pair][:n])]
