"""A worker: loads the model and the tasks of a plan, and turns units of work into rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import Any

import torch

from vtprune.bench.ask import Asked, Prompt, Said, ask, policy_of, read_prompts, write_prompt
from vtprune.bench.condition import Condition
from vtprune.bench.frame_scores import FrameScores, scored, wants_scores
from vtprune.bench.make_task import make_task
from vtprune.bench.plan import Plan, Unit
from vtprune.bench.question import Grade, Question, Visual, digest
from vtprune.bench.tasks import Task
from vtprune.bench.twin import Twin
from vtprune.bench.versions import commit, versions
from vtprune.bench.views import View, load, other_question, view_of
from vtprune.cli.error import one_line
from vtprune.cli.measure import total_variation
from vtprune.cli.quiet import quiet_transformers
from vtprune.clock import now
from vtprune.models import Loaded
from vtprune.models import load as load_model

FAILURES = (ValueError, TypeError, LookupError, ArithmeticError, OSError, RuntimeError, ImportError)
"""What makes a question a failed row instead of ending the run: files that cannot be read, prompts that do not fit,
policies that refuse, a device's memory."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Questions of a unit that are shown the same kind of thing, and the model inputs of that."""

    questions: tuple[Question, ...]
    prompts: tuple[Prompt, ...]
    asked: Asked
    seconds: Mapping[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        """The ids of the questions."""
        return tuple(question.id for question in self.questions)


@dataclass(frozen=True, eq=False)
class Opened:
    """A task whose questions are known."""

    task: Task
    questions: Sequence[Question]

    @cached_property
    def place(self) -> Mapping[str, int]:
        """Where each question stands, by id."""
        return {question.id: i for i, question in enumerate(self.questions)}


class Worker:
    """Answers units. It holds one model; nothing that it says depends on which units it did before."""

    def __init__(self, plan: Plan):
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        self.plan = plan
        self.conditions = {condition.name: condition for condition in plan.conditions}
        with quiet_transformers():
            self.loaded: Loaded = load_model(plan.model, dtype=plan.dtype, device=plan.device, attention=plan.attention)
        self.opened: dict[str, Opened] = {}

    @cached_property
    def frame_scores(self) -> FrameScores:
        """What rates frames, loaded when a policy first goes by it."""
        return FrameScores(self.plan.scorer, self.loaded)

    def open(self, spec: str) -> Opened:
        """The task of this name, read once."""
        if spec not in self.opened:
            task = make_task(spec, self.plan.data, self.plan.folders.get(spec))
            self.opened[spec] = Opened(task, tuple(task.questions()))
        return self.opened[spec]

    def do(self, unit: Unit) -> list[Row]:
        """One row for each question and condition; what failed is a row that says why."""
        return [row for rows in self.pieces(unit) for row in rows]

    def pieces(self, unit: Unit) -> Iterator[list[Row]]:
        """The same rows, a condition at a time: what was answered is there to be stored."""
        with quiet_transformers():
            yield from Job(self, unit).pieces()

    def failures(self, unit: Unit, error: str) -> list[Row]:
        """The rows of a unit that could not be done at all."""
        job = Job(self, unit)
        return [
            job.failure(question, self.conditions[name], error)
            for name in unit.conditions
            for question in job.questions
        ]


class Job:
    """One unit in the making: what it loaded, and the first-token logits of the unpruned model."""

    def __init__(self, worker: Worker, unit: Unit):
        self.worker, self.unit, self.loaded = worker, unit, worker.loaded
        self.opened = worker.open(unit.task)
        self.task = self.opened.task
        self.questions = [self.opened.questions[self.opened.place[name]] for name in unit.questions]
        self.limit = worker.plan.max_new_tokens or self.task.max_new_tokens
        self.seen: dict[View, tuple[list[Part], dict[str, str]]] = {}
        self.rated: dict[int, tuple[list[torch.Tensor], float]] = {}
        self.single: dict[int, list[Part]] = {}
        self.whole: dict[tuple[str, ...], list[torch.Tensor]] = {}
        self.counts: dict[tuple[str, tuple[str, ...]], dict[float, list[int]]] = {}

    def pieces(self) -> Iterator[list[Row]]:
        """Rows of all questions under one condition after the other."""
        for condition, view in self._in_order():
            parts, failed = self.parts_of(view)
            found = [
                self.failure(question, condition, failed[question.id])
                for question in self.questions
                if question.id in failed
            ]
            for part in parts:
                found += self._answers(part, condition)
            yield found

    def _in_order(self) -> list[tuple[Condition, View]]:
        """The unit's conditions, those together that are shown the same, so that it is loaded once."""
        pairs = [
            (condition, self._view(condition)) for condition in map(self.worker.conditions.get, self.unit.conditions)
        ]
        order = list(dict.fromkeys(view for _, view in pairs))
        return sorted(pairs, key=lambda pair: order.index(pair[1]))

    def _view(self, condition: Condition) -> View:
        return view_of(condition, self.worker.plan.shares.get(self.unit.task, {}).get(condition.name))

    def parts_of(self, view: View) -> tuple[list[Part], dict[str, str]]:
        """What a view shows of the unit's questions, and why of some it cannot."""
        if view not in self.seen:
            prompts, seconds, failed = {}, {}, {}
            for question in self.questions:
                start = now()
                try:
                    prompts[question.id] = self._prompt(question, view)
                except FAILURES as error:
                    failed[question.id] = one_line(error)
                seconds[question.id] = now() - start
            # what is last shown to a model may be much: other views of the same questions are let go
            self.rated, self.single = {}, {}
            self.seen = {view: (self._read(prompts, seconds, failed), failed)}
        return self.seen[view]

    def _visuals(self, question: Question, view: View) -> tuple[Visual, ...]:
        """What is shown with a question. Raises ValueError where there is nothing else to show."""
        if view.whose == "none":
            return ()
        if view.whose == "other":
            return other_question(self.opened.questions, self.opened.place[question.id]).visuals
        return question.visuals

    def _prompt(self, question: Question, view: View) -> Prompt:
        shown = [load(visual, view, self.worker.plan.frames) for visual in self._visuals(question, view)]
        return write_prompt(self.loaded, question.text, shown)

    def _read(self, prompts: Mapping[str, Prompt], seconds: Mapping[str, float], failed: dict[str, str]) -> list[Part]:
        """The prompts as model inputs: those that show something together, and those that show nothing."""
        found = []
        for showing in (True, False):
            names = [name for name, prompt in prompts.items() if bool(prompt.shown) == showing]
            found += self._encode(names, prompts, seconds, failed)
        return found

    def _encode(self, names: list[str], prompts, seconds, failed: dict[str, str]) -> list[Part]:
        if not names:
            return []
        start, several = now(), tuple(prompts[name] for name in names)
        try:
            asked = read_prompts(self.loaded, several)
        except FAILURES as error:
            if len(names) == 1:
                failed[names[0]] = one_line(error)
                return []
            # one of them cannot be read: alone, the others can
            return [part for name in names for part in self._encode([name], prompts, seconds, failed)]
        took = {"read": sum(seconds[name] for name in names) / len(names), "inputs": (now() - start) / len(names)}
        questions = {question.id: question for question in self.questions}
        return [Part(tuple(questions[name] for name in names), several, asked, took)]

    def _answers(self, part: Part, condition: Condition) -> list[Row]:
        rated = self.worker.conditions[condition.beside] if condition.kind == "twin" else condition
        if wants_scores(rated) and len(part.questions) > 1:
            # scores are those of one prompt's frames
            return [row for one in self.alone(part) for row in self._answers(one, condition)]
        try:
            said = self._ask(part, condition)
            whole = self._whole(part, condition, said)
        except FAILURES as error:
            if len(part.questions) == 1:
                return [self.failure(part.questions[0], condition, one_line(error))]
            return [row for one in self.alone(part) for row in self._answers(one, condition)]
        return [
            self._row(part, i, condition, one, total_variation(one.logits, whole[i]) if condition.prunes else None)
            for i, one in enumerate(said)
        ]

    def _ask(self, part: Part, condition: Condition) -> list[Said]:
        if condition.kind == "twin":
            return ask(self.loaded, part.asked, condition, self.limit, self._twin(part, condition))
        said = self._policy(part, condition)
        self.counts[condition.name, part.names] = counts_of(said)
        return said

    def _twin(self, part: Part, condition: Condition) -> Twin:
        """Random tokens with the counts of the condition beside, which is asked if it was not."""
        beside, key = self.worker.conditions[condition.beside], (condition.beside, part.names)
        if key not in self.counts:
            self.counts[key] = counts_of(self._policy(part, beside))
        return Twin(self.counts[key], condition.seed or 0, getattr(policy_of(beside), "positions", "original"))

    def _policy(self, part: Part, condition: Condition) -> list[Said]:
        if not wants_scores(condition):
            return ask(self.loaded, part.asked, condition, self.limit)
        scores, took = self._scores(part)
        [said] = ask(self.loaded, part.asked, condition, self.limit, scored(policy_of(condition), scores))
        # rating frames is selecting
        more = {name: said.seconds[name] + took for name in ("answer", "select")}
        seconds = {**said.seconds, **more}
        return [dataclasses.replace(said, seconds=seconds)]

    def _scores(self, part: Part) -> tuple[list[torch.Tensor], float]:
        """Scores of the frames of a prompt, and the seconds that they took; every ratio goes by the same."""
        key = id(part)
        if key not in self.rated:
            start = now()
            scores = self.worker.frame_scores(part.prompts[0].shown, part.questions[0].text)
            self.rated[key] = (scores, now() - start)
        return self.rated[key]

    def alone(self, part: Part) -> list[Part]:
        """The questions of a part one by one, read once."""
        if id(part) not in self.single:
            pairs = zip(part.questions, part.prompts, strict=True)
            self.single[id(part)] = [
                Part((question,), (prompt,), read_prompts(self.loaded, [prompt]), part.seconds)
                for question, prompt in pairs
            ]
        return self.single[id(part)]

    def _whole(self, part: Part, condition: Condition, said: Sequence[Said]) -> list[torch.Tensor]:
        """The unpruned model's logits for the same batch; they are made for this if they are not there."""
        if condition.kind == "full":
            self.whole[part.names] = [one.logits for one in said]
        elif condition.prunes and part.names not in self.whole:
            self.whole[part.names] = [one.logits for one in ask(self.loaded, part.asked, Condition("full"), 1)]
        return self.whole.get(part.names, [])

    def _row(self, part: Part, i: int, condition: Condition, said: Said, changed: float | None) -> Row:
        question, prompt = part.questions[i], part.prompts[i]
        grade, view = self.task.grade(question, said.raw), self._view(condition)
        frames = [len(one) for one in prompt.shown if hasattr(one, "seconds")]
        visuals = [visual.name for visual in self._visuals(question, view)]
        smaller = "" if view.share == 1 else f"\n{view}"
        return {
            **self._about(question, condition),
            "visuals": visuals,
            "raw": said.raw,
            "parsed": grade.parsed,
            "score": grade.score,
            "correct": grade.score >= 0.5,
            "error": None,
            "prompt": digest(f"{prompt.text}\n{visuals}{smaller}"),
            "frames": sum(frames) if frames else None,
            "before": said.before,
            "after": said.after,
            "layers": said.layers,
            "flops": said.flops,
            "kept": dict(said.kept),
            "kv": said.kv and list(said.kv),
            "batch": part.asked.size,
            "first": said.first,
            "change": changed,
            "new_tokens": said.new_tokens,
            "seconds": {**part.seconds, **said.seconds},
            "notes": list(said.notes),
        }

    def failure(self, question: Question, condition: Condition, why: str) -> Row:
        """The row of a question that was not answered."""
        nothing = dict.fromkeys(("raw", "parsed", "frames", "kv", "first", "change", "layers", "flops"))
        zeros = {"before": 0, "after": 0, "new_tokens": 0, "batch": 1}
        row = {**self._about(question, condition), **nothing, **zeros, **vars(Grade(None, 0.0)), "error": why}
        return {**row, "correct": False, "prompt": None, "kept": {}, "seconds": {}, "notes": []}

    def _about(self, question: Question, condition: Condition) -> Row:
        """What every row begins with."""
        return {
            "task": self.unit.task,
            "question": question.id,
            "condition": condition.name,
            "row": condition.row,
            "cluster": question.cluster,
            "labels": dict(question.labels),
            "options": list(question.options),
            "answer": question.answer,
            "visuals": [visual.name for visual in question.visuals],
            "seed": condition.seed,
            "commit": commit(),
            "versions": versions(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


def counts_of(said: Sequence[Said]) -> dict[float, list[int]]:
    """By site, how many visual tokens each prompt of a batch keeps that has any."""
    shown = [one for one in said if one.before]
    return {site: [len(one.rows[i]) for one in shown] for i, site in enumerate(shown[0].sites if shown else ())}
