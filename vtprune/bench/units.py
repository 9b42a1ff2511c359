"""What is to be done: which questions of a task are asked, and the pieces of work that are still missing."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vtprune.bench.plan import Plan, Unit
from vtprune.bench.question import Question

GOLDEN = (math.sqrt(5) - 1) / 2
"""Steps of this share of a circle visit it evenly, however many there are."""

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Entry:
    """A question as far as the order of the work needs to know it. kinds: of what it is about."""

    id: str
    kinds: frozenset[str] = frozenset()


def entries(questions: Iterable[Question]) -> list[Entry]:
    """The questions without their pictures. Raises ValueError where two have one id."""
    found: dict[str, Entry] = {}
    for question in questions:
        if question.id in found:
            raise ValueError(f"two questions have the id {question.id!r}; each needs its own")
        found[question.id] = Entry(question.id, frozenset(visual.kind for visual in question.visuals))
    return list(found.values())


def sample(asked: Sequence[Entry], limit: int | None, seed: int = 0) -> list[Entry]:
    """So many of a task's questions, spread evenly over it, in its order; all of them where there are no more.

    Files are sorted by kind, so the first few would be of one kind. With the same seed a smaller sample is part of a
    larger one: raising the limit repeats nothing.
    """
    n = len(asked)
    if limit is None or limit >= n:
        return list(asked)
    place, chosen = random.Random(seed).random(), set()
    while len(chosen) < limit:
        chosen.add(int(place * n))
        place = (place + GOLDEN) % 1
    return [asked[i] for i in sorted(chosen)]


def names_for(plan: Plan, task: str, entry: Entry) -> list[str]:
    """The conditions that say something about a question, in the order of the plan.

    Pictures have no frames to leave out, and no input is "same time" where none was found that takes as long.
    """
    shares = plan.shares.get(task, {})
    clips = "video" in entry.kinds
    found = [one for one in plan.conditions if one.kind != "fewer frames" or clips]
    return [one.name for one in found if one.kind != "same time" or one.name in shares]


def keys(plan: Plan, asked: Mapping[str, Sequence[Entry]]) -> Iterator[Key]:
    """(task, question, condition) of every row that a whole run has."""
    for task, questions in asked.items():
        for entry in questions:
            yield from ((task, entry.id, name) for name in names_for(plan, task, entry))


def build_units(plan: Plan, asked: Mapping[str, Sequence[Entry]], done: Collection[Key], batch: int) -> list[Unit]:
    """The work that is missing: task by task, ``batch`` questions at a time, each with the conditions it lacks.

    Questions stay with those that they are beside in a run that nothing interrupts, as far as they lack the same.
    """
    if batch < 1:
        raise ValueError(f"batch is the number of questions that go in together, 1 or more; got {batch}")
    units = []
    for task, questions in asked.items():
        for start in range(0, len(questions), batch):
            lacking: dict[tuple[str, ...], list[str]] = {}
            for entry in questions[start : start + batch]:
                missing = tuple(name for name in names_for(plan, task, entry) if (task, entry.id, name) not in done)
                if missing:
                    lacking.setdefault(missing, []).append(entry.id)
            units += [Unit(task, tuple(ids), missing) for missing, ids in lacking.items()]
    return units
