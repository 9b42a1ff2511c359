"""What a condition costs: times by phase, memory, cache bytes and FLOPs of a few questions, at several batch sizes.

Conditions take turns, so that a machine that slows down slows all of them, and the time of selecting is part of every
time in which it happens.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from vtprune.api import pruned
from vtprune.bench.ask import Asked, policy_of, read_prompts, write_prompt
from vtprune.bench.condition import Condition
from vtprune.bench.frame_scores import scored, wants_scores
from vtprune.bench.memory import peak_bytes
from vtprune.bench.question import Question
from vtprune.bench.views import View, load, view_of
from vtprune.bench.work import FAILURES, Worker
from vtprune.cli.error import one_line
from vtprune.clock import Ticks, now
from vtprune.report import Report
from vtprune.seconds import frame_times

WARM, ROUNDS, TOKENS = 3, 20, 8
"""Untimed and timed runs of each condition, and the tokens that each generates."""

BATCHES = (1, 4, 16)

Times = dict[str, list[float]]


def time_rows(
    worker: Worker,
    spec: str,
    questions: Sequence[Question],
    conditions: Sequence[Condition],
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    warm: int = WARM,
) -> Iterator[dict[str, Any]]:
    """One row for each batch size and condition; where there are fewer questions, they are repeated to fill a batch.

    Times are milliseconds of the batch: ``vision_ms`` (tower, projector, signals that arise there), ``selector_ms``
    (signals inside the decoder, selecting, and rating frames where a policy goes by that), ``prefill_ms`` (the decoder:
    what is left until the first token), ``ttft_ms`` (all three), ``token_ms`` (each later one), ``total_ms``
    (``TOKENS`` tokens). ``peak_bytes`` is what a run held above the weights.
    """
    for batch in batches:
        asked = [questions[i % len(questions)] for i in range(batch)]
        yield from measured(
            [
                (
                    {"task": spec, "condition": condition.name, "row": condition.row, "batch": batch},
                    functools.partial(Timed, worker, spec, asked, condition),
                )
                for condition in conditions
            ],
            rounds,
            warm,
        )


def measured(made: Sequence[tuple[dict, Callable[[], Timed]]], rounds: int, warm: int) -> Iterator[dict[str, Any]]:
    """Rows with the numbers of what is made, run in turns; one that cannot be run is a row with ``error``."""
    rows, runs = {}, {}
    for row, make in made:
        name = row["condition"]
        try:
            runs[name] = make()
            # once at least: what a condition refuses, it refuses here
            for _ in range(max(1, warm)):
                runs[name].once()
            rows[name] = row
        except FAILURES as error:
            runs.pop(name, None)
            yield {**row, "error": one_line(error)}
    in_turns(runs, rounds)
    for name, run in runs.items():
        yield rows[name] | run.values()


def in_turns(runs: Mapping[str, Timed], rounds: int) -> None:
    """Runs each so often, after forgetting what was measured before; who goes first alternates."""
    for run in runs.values():
        run.times.clear()
    for i in range(rounds):
        for name in list(runs)[:: 1 - 2 * (i % 2)]:
            runs[name].once()


class Timed:
    """A condition with a batch of prompts, and what its runs took. copies: how often each visual is shown."""

    def __init__(self, worker: Worker, spec: str, questions: Sequence[Question], condition: Condition, copies: int = 1):
        self.worker, self.loaded, self.condition = worker, worker.loaded, condition
        self.questions = questions
        share = worker.plan.shares.get(spec, {}).get(condition.name)
        if condition.kind == "same time" and share is None:
            raise ValueError("no size of the input was found that takes as long")
        view = view_of(condition, share)
        if view.whose == "other":
            view = View()  # as much is shown
        self.asked = self._read(worker, questions, view, copies)
        self.times: Times = {}

    def _read(self, worker: Worker, questions: Sequence[Question], view: View, copies: int) -> Asked:
        prompts = []
        for question in questions:
            visuals = () if view.whose == "none" else question.visuals
            shown = [load(visual, view, worker.plan.frames) for visual in visuals]
            prompts.append(write_prompt(self.loaded, question.text, copies * shown))
        self.prompts = prompts
        return read_prompts(self.loaded, prompts)

    def _policy(self) -> Any:
        """The policy of the condition; frames are rated where it goes by that, the first prompt's serve all."""
        policy = policy_of(self.condition)
        if not wants_scores(self.condition):
            return policy
        pairs = zip(self.prompts, self.questions, strict=True)
        return scored(policy, [self.worker.frame_scores(one.shown, question.text) for one, question in pairs][0])

    def once(self) -> None:
        """One run."""
        model = self.loaded.model
        times = frame_times(self.asked.seconds) if self.asked.seconds else nullcontext()
        start = now(model.device)
        policy = self._policy()
        rated = 1000 * (now(model.device) - start)
        with pruned(model, policy, positions=self.condition.positions) as report, times:
            ticks = Ticks(model.device)
            self._generate(TOKENS, min_new_tokens=TOKENS, stopping_criteria=[ticks])
        start, first, *later = ticks.seconds
        whole = 1000 * (first - start)
        found = {
            "vision_ms": report.vision_milliseconds,
            "selector_ms": report.milliseconds + rated,
            "prefill_ms": whole - report.vision_milliseconds - report.milliseconds,
            "ttft_ms": whole + rated,
            "token_ms": 1000 * (later[-1] - first) / len(later),
            "total_ms": 1000 * (later[-1] - start) + rated,
        }
        for name, value in found.items():
            self.times.setdefault(name, []).append(value)

    def _generate(self, tokens: int, **more):
        with torch.inference_mode():
            return self.loaded.model.generate(
                **self.asked.inputs, max_new_tokens=tokens, do_sample=False, num_beams=1, use_cache=True, **more
            )

    def values(self) -> dict[str, Any]:
        """The numbers of a row."""
        model = self.loaded.model
        with pruned(model, self._policy(), positions=self.condition.positions) as report:
            with frame_times(self.asked.seconds) if self.asked.seconds else nullcontext():
                peak = peak_bytes(lambda: self._generate(TOKENS, min_new_tokens=TOKENS), model.device)
            return {
                **{name: spread(values) for name, values in self.times.items()},
                "tokens": [list(pair) for pair in report.tokens],
                "peak_bytes": peak,
                "kv_bytes": report.kv_bytes,
                "kv_bytes_unpruned": _if_known(lambda: report.kv_bytes_unpruned),
                "flops": flops_of(report),
            }


def flops_of(report: Report) -> Mapping[str, float] | None:
    """Prefill FLOPs of the batch by part, and FastV's figure; None where the prompt showed nothing."""
    if report.last is None:
        return None
    return {
        "vision": report.flops_vision.total_causal,
        "selector": report.flops_selector.total_causal,
        "decoder": (report.flops.total_causal - report.flops_selector.total_causal),
        "unpruned": report.flops_unpruned.total_causal,
        "fastv_formula": _if_known(lambda: report.flops_fastv),
    }


def _if_known(count: Callable[[], int]) -> int | None:
    """A number that the report computes; None for decoders of which it does not know how."""
    try:
        return count()
    except NotImplementedError:
        return None


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, ninetieth percentile (nearest rank) and number."""
    ordered = sorted(values)
    rank = -(-9 * len(ordered) // 10) - 1
    return {"median": statistics.median(ordered), "p90": ordered[rank], "n": len(ordered)}
