"""How small pictures must be, or how few frames, for the unpruned model to answer as soon as a pruned one.

Published tables compare at matched tokens, which flatters methods that select slowly; this control also has the time
that a smaller input saves in the vision tower.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from vtprune.bench.ask import Asked, Prompt, ask, read_prompts, write_prompt
from vtprune.bench.condition import Condition
from vtprune.bench.encoded import Encoded
from vtprune.bench.frame_scores import wants_scores
from vtprune.bench.question import Question
from vtprune.bench.views import View, fewer, load
from vtprune.bench.work import Worker
from vtprune.clock import now
from vtprune.video.frames import Frames

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
        self.inputs: dict[float, list[tuple[Prompt, Asked]]] = {}
        self.times: dict[object, float] = {}

    def prompts(self, share: float) -> list[tuple[Prompt, Asked]]:
        if share not in self.inputs:
            loaded, frames = self.worker.loaded, self.worker.plan.frames
            shown = [[load(visual, View(share), frames) for visual in one.visuals] for one in self.questions]
            prompts = [write_prompt(loaded, one.text, what) for one, what in zip(self.questions, shown, strict=True)]
            whole = {1.0: self.inputs[1.0]} if 1.0 in self.inputs else {}
            self.inputs = whole | {share: [(one, read_prompts(loaded, [one])) for one in prompts]}
        return self.inputs[share]

    def shrinks(self) -> bool:
        """Whether a quarter of the pixels or frames makes a shorter prompt."""
        lengths = [[asked.inputs["input_ids"].shape[1] for _, asked in self.prompts(share)] for share in (1.0, 0.25)]
        return sum(lengths[1]) < sum(lengths[0])

    def seconds(self, condition: Condition, share: float) -> float:
        """To the first token, the sum over the questions of each one's median."""
        pairs = zip(self.questions, self.prompts(share), strict=True)
        return sum(self._median(question, *both, condition) for question, both in pairs)

    def _median(self, question: Question, prompt: Prompt, asked: Asked, condition: Condition) -> float:
        took = []
        for _ in range(1 + ROUNDS):
            start = now(self.worker.loaded.model.device)
            if wants_scores(condition):
                # rating frames is selecting
                self.worker.frame_scores(prompt.shown, question.text)
            # the vision tower runs anew, since it is part of what a smaller input saves
            ask(self.worker.loaded, dataclasses.replace(asked, encoded=Encoded()), condition, 1)
            took.append(now(self.worker.loaded.model.device) - start)
        return statistics.median(took[1:])

    def unpruned(self, share: float) -> float:
        size = self._size(share)
        if size not in self.times:
            self.times[size] = self.seconds(Condition("full"), share)
        return self.times[size]

    def _size(self, share: float) -> object:
        """What shares have in common that show the same: of clips so many frames."""
        whole = [shown for prompt, _ in self.prompts(1.0) for shown in prompt.shown]
        if not all(isinstance(shown, Frames) for shown in whole):
            return share
        return tuple(fewer(len(shown), share) for shown in whole)

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
    return "; ".join(f"left out {_some(names)}: {why}" for why, names in reasons.items())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} conditions such as {names[0]}"
