"""How small pictures must be, or how few frames, for the unpruned model to answer as soon as a pruned one.

Published tables compare at matched tokens, which flatters methods that select slowly; this control also has the time
that a smaller input saves in the vision tower.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from vtprune.bench.ask import Asked, ask, read_prompts, write_prompt
from vtprune.bench.clock import now
from vtprune.bench.condition import Condition
from vtprune.bench.question import Question
from vtprune.bench.views import View, load
from vtprune.bench.work import Worker

ROUNDS, QUESTIONS = 5, 3
"""Timed answers of each of so many questions; the first of a prompt is not timed."""

STEPS = 6
"""Halvings of the range in which the share lies."""

LEAST = 1 / 64


def same_time_shares(
    worker: Worker, spec: str, questions: Sequence[Question]
) -> tuple[dict[str, float], dict[str, str]]:
    """{condition name: share of the pixels or frames} of a task's "same time" conditions, and why some have none.

    A share is the largest of those tried at which the first token comes no later than under the condition beside which
    it stands; 1 where that one is no faster than the unpruned model.
    """
    wanted = [condition for condition in worker.conditions.values() if condition.kind == "same time"]
    asked = [question for question in questions if question.visuals][:QUESTIONS]
    if not wanted:
        return {}, {}
    if not asked:
        return {}, dict.fromkeys((one.name for one in wanted), f"no question of {spec} shows anything")
    timer = _Timer(worker, asked)
    if not timer.shrinks():
        why = "a smaller picture makes as many visual tokens here, so it saves no time"
        return {}, dict.fromkeys((one.name for one in wanted), why)
    shares, why = {}, {}
    for one in wanted:
        try:
            shares[one.name] = timer.share(worker.conditions[one.beside])
        except ValueError as error:
            why[one.name] = f"{one.beside} cannot be timed: {error}"
    return shares, why


class _Timer:
    """Times to the first token of a few questions, at any share of what they show."""

    def __init__(self, worker: Worker, questions: Sequence[Question]):
        self.worker, self.questions = worker, questions
        self.inputs: dict[float, list[Asked]] = {}
        self.times: dict[float, float] = {}

    def prompts(self, share: float) -> list[Asked]:
        if share not in self.inputs:
            loaded, frames = self.worker.loaded, self.worker.plan.frames
            shown = [[load(visual, View(share), frames) for visual in one.visuals] for one in self.questions]
            prompts = [write_prompt(loaded, one.text, what) for one, what in zip(self.questions, shown, strict=True)]
            whole = {1.0: self.inputs[1.0]} if 1.0 in self.inputs else {}
            self.inputs = whole | {share: [read_prompts(loaded, [one]) for one in prompts]}
        return self.inputs[share]

    def shrinks(self) -> bool:
        """Whether a quarter of the pixels or frames makes a shorter prompt."""
        lengths = [[one.inputs["input_ids"].shape[1] for one in self.prompts(share)] for share in (1.0, 0.25)]
        return sum(lengths[1]) < sum(lengths[0])

    def seconds(self, condition: Condition, share: float) -> float:
        """To the first token, the sum over the questions of each one's median."""
        return sum(self._median(asked, condition) for asked in self.prompts(share))

    def _median(self, asked: Asked, condition: Condition) -> float:
        took = []
        for _ in range(1 + ROUNDS):
            start = now(self.worker.loaded.model.device)
            ask(self.worker.loaded, asked, condition, 1)
            took.append(now(self.worker.loaded.model.device) - start)
        return statistics.median(took[1:])

    def unpruned(self, share: float) -> float:
        if share not in self.times:
            self.times[share] = self.seconds(Condition("full"), share)
        return self.times[share]

    def share(self, condition: Condition) -> float:
        """The largest share that was tried and is no slower than a condition."""
        limit = self.seconds(condition, 1.0)
        if self.unpruned(1.0) <= limit:
            return 1.0
        low, high = LEAST, 1.0
        for _ in range(STEPS):
            middle = (low * high) ** 0.5
            if self.unpruned(middle) <= limit:
                low = middle
            else:
                high = middle
        return low


def missing(notes: Mapping[str, str]) -> str:
    """One line about conditions that were left out; empty if none was."""
    reasons: dict[str, list[str]] = {}
    for name, why in notes.items():
        reasons.setdefault(why, []).append(name)
    return "; ".join(f"left out {', '.join(names)}: {why}" for why, names in reasons.items())
