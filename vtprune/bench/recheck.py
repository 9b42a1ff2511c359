"""Asks some questions again, and alone: whether the same tokens are kept and the same answers given.

A policy that draws at random without a seed, or that looks at its neighbours in the batch, is found out here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from vtprune.bench.ask import Said, ask
from vtprune.bench.condition import Condition
from vtprune.bench.frame_scores import wants_scores
from vtprune.bench.plan import Unit
from vtprune.bench.views import view_of
from vtprune.bench.work import FAILURES, Job, Worker

AGAIN, ALONE = "again", "batch of one"


def recheck(worker: Worker, spec: str, ids: Sequence[str], conditions: Sequence[Condition]) -> Iterator[dict[str, Any]]:
    """One row for each question, condition and way of asking again: ``same_kept`` and ``same_answer``.

    ids: the questions of one batch. Only conditions that prune are asked, without twins and those whose
    frames are rated first, which are asked alone anyway; whatever fails is left to the run's rows.
    """
    wanted = [one for one in conditions if one.prunes and one.kind != "twin" and not wants_scores(one)]
    job = Job(worker, Unit(spec, tuple(ids), tuple(condition.name for condition in wanted)))
    for condition in wanted:
        for part in job.parts_of(view_of(condition))[0]:
            try:
                first = ask(worker.loaded, part.asked, condition, job.limit)
                again = ask(worker.loaded, part.asked, condition, job.limit)
                alone = [ask(worker.loaded, one.asked, condition, job.limit)[0] for one in job.alone(part)]
            except FAILURES:
                continue
            for what, others in ((AGAIN, again), (ALONE, alone)):
                for question, one, other in zip(part.questions, first, others, strict=True):
                    yield {
                        "task": spec,
                        "question": question.id,
                        "condition": condition.name,
                        "what": what,
                        "same_kept": same_kept(one, other),
                        "same_answer": one.raw == other.raw,
                    }


def same_kept(one: Said, other: Said) -> bool:
    """Whether every site kept the same rows."""
    return len(one.rows) == len(other.rows) and all(map(torch.equal, one.rows, other.rows))
