"""A whole run, in order: how small "same time" inputs are, the answers, the re-checks, the times."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtprune.bench.condition import Condition
from vtprune.bench.plan import Plan
from vtprune.bench.run import Ran, run
from vtprune.bench.store import Store
from vtprune.bench.units import Entry, names_for
from vtprune.cli.console import note, still

if TYPE_CHECKING:
    from vtprune.bench.question import Question
    from vtprune.bench.work import Worker

TIMES, RECHECK = "times.jsonl", "recheck.jsonl"

UNTIMED = ("blind", "other", "twin")
"""Kinds of conditions that nobody would use."""

TIMED = 16
"""Questions of a task whose answers are timed; RECHECKED: that are asked again."""
RECHECKED = 4


class Here:
    """The worker of this process, which loads its model when it is first needed."""

    def __init__(self):
        self._worker: Worker | None = None

    def __call__(self, plan: Plan) -> Worker:
        from vtprune.bench.work import Worker

        if self._worker is None:
            self._worker = Worker(plan)
        self._worker.plan = plan
        return self._worker

    def forget(self) -> None:
        """Lets the model go, where its memory is needed."""
        self._worker = None


def conduct(
    plan: Plan,
    store: Store,
    asked: Mapping[str, Sequence[Entry]],
    *,
    batch: int = 1,
    engine: str = "local",
    options: Mapping[str, Any] | None = None,
    retry_failed: bool = False,
    times: bool = True,
) -> Ran:
    """Does what is missing of a run, and says on the error stream what it is at.

    Arguments as of ``run``. times: whether answers of a few questions are timed, which takes a while.
    """
    here = Here()
    plan = dataclasses.replace(plan, shares=find_shares(plan, store, asked, here))
    if engine == "local":
        ran = run(plan, store, asked, batch=batch, retry_failed=retry_failed, options={"worker": here})
    else:
        here.forget()
        ran = run(plan, store, asked, batch=batch, engine=engine, retry_failed=retry_failed, options=options)
    ask_again(plan, store, asked, here, max(batch, RECHECKED))
    if times:
        take_times(plan, store, asked, here)
    return ran


def find_shares(
    plan: Plan, store: Store, asked: Mapping[str, Sequence[Entry]], here: Here
) -> dict[str, dict[str, float]]:
    """{task: {condition name: share}} of the "same time" conditions; what was found before stays.

    A share is measured, so it is found once and kept in ``run.json``: answers to inputs of two sizes are not mixed.
    """
    names = {condition.name for condition in plan.conditions if condition.kind == "same time"}
    shares = {task: dict(found) for task, found in store.values.get("shares", {}).items()}
    left_out = {task: dict(found) for task, found in store.values.get("left_out", {}).items()}
    for task, entries in asked.items():
        known = shares.setdefault(task, {}).keys() | left_out.setdefault(task, {}).keys()
        if names <= known:
            continue
        from vtprune.bench.same_time import missing, same_time_shares

        with still(f"{task}: how small a picture or clip must be to be answered as soon"):
            worker = here(plan)
            found, why = same_time_shares(worker, task, chosen(worker, task, entries))
        shares[task] |= {name: share for name, share in found.items() if name not in known}
        left_out[task] |= {name: text for name, text in why.items() if name not in known}
        if left_out[task]:
            note(f"{task}: {missing(left_out[task])}")
        store.remember("shares", shares)
        store.remember("left_out", left_out)
    return shares


def ask_again(plan: Plan, store: Store, asked: Mapping[str, Sequence[Entry]], here: Here, n: int) -> None:
    """Re-checks the first ``n`` questions of each task under the conditions that were not re-checked before."""
    for task, entries in asked.items():
        there = {row["condition"] for row in store.recorded(RECHECK) if row["task"] == task}
        missing = [one for one in one_seed(plan.conditions) if one.prunes and one.name not in there]
        if not missing or not entries:
            continue
        from vtprune.bench.recheck import recheck

        with still(f"{task}: asking some questions again"):
            ids = [entry.id for entry in entries[:n]]
            store.record(RECHECK, list(recheck(here(plan), task, ids, missing)))


def take_times(plan: Plan, store: Store, asked: Mapping[str, Sequence[Entry]], here: Here) -> None:
    """Times each task's first questions, and longer prompts, under the conditions that were not timed before.

    Some are not timed, see ``UNTIMED``.
    """
    for task, entries in asked.items():
        there = {row["condition"] for row in store.recorded(TIMES) if row["task"] == task}
        timed = entries[:TIMED]
        named = {name for entry in timed for name in names_for(plan, task, entry)} - there
        missing = [one for one in one_seed(plan.conditions) if one.name in named and one.kind not in UNTIMED]
        if not missing:
            continue
        with still(f"{task}: timing {len(missing)} conditions"):
            questions = chosen(here(plan), task, timed)
            # all of them at once, since those of a condition are the sign that it is done
            store.record(TIMES, list(_times(here(plan), task, questions, missing)))


def _times(
    worker: Worker, task: str, questions: Sequence[Question], conditions: Sequence[Condition]
) -> Iterator[dict[str, Any]]:
    from vtprune.bench.break_even import break_even_rows
    from vtprune.bench.efficiency import time_rows

    yield from time_rows(worker, task, questions, conditions)
    own = [one for one in conditions if one.kind in ("full", "policy", "random", "uniform", "pool")]
    yield from break_even_rows(worker, task, questions[0], own)


def chosen(worker: Worker, task: str, entries: Sequence[Entry]) -> list[Question]:
    """The questions themselves, of the task as the worker has it."""
    opened = worker.open(task)
    return [opened.questions[opened.place[entry.id]] for entry in entries]


def one_seed(conditions: Sequence[Condition]) -> list[Condition]:
    """Of conditions that differ in their seed alone, the first."""
    return list({condition.row: condition for condition in reversed(conditions)}.values())[::-1]
