"""One policy on the tiny model of one family: whether it is defined there, and what stands in for what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

import vtprune
from tests import oracle, tiny
from vtprune.policies.base import POLICIES, cache_policies

# towers of the tiny models have three layers, decoders four; policies not named here are as without options
OPTIONS = {
    "vtc_cls": {"layers": (-2,)},
    "hired": {"layers": (0, 1)},
    "hiprune": {"alpha": 1.0},
}
RATIOS = {"dycoke": 0.6, "framefusion": 0.6}
VIDEO = {"dycoke", "evs", "fastvid", "flashvid", "holitom", "llava_scissor", "prunevid", "sttm", "vidcom2"}
"""Policies that keep images whole, or nearly so."""

NAMES = sorted(set(POLICIES) - {"none"})
CACHE = cache_policies()
PRUNING = [name for name in NAMES if name not in CACHE]


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    status: "pruned"; "whole", as it keeps everything of such prompts and says so; or "refused".
    notes:  what the report says; of a refusal, why.
    """

    status: str
    notes: tuple[str, ...] = ()


@cache
def model_of(family: str, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    return tiny.build(family, "sdpa", dtype)


def samples_of(family: str, kind: str) -> list[tiny.Sample]:
    """Two samples with unequal numbers of visual tokens and of text. kind: "image" or "video"."""
    return tiny.samples(family, "ragged") if kind == "image" else tiny.video_samples(family, "ragged")


def outcome(family: str, kind: str, name: str, alone: bool = True) -> Outcome:
    """Runs policy ``name`` on a batch of two, and, if ``alone``, on each of them alone, which must give the same.

    That what is kept is a set of rows, in order, and that merges are averages, is checked whenever a policy answers.
    """
    model, samples, reports = model_of(family), samples_of(family, kind), []
    # generate hands out logits in float32
    tolerance = max(tiny.tolerance(family), 1e-4 if name in CACHE else 0)
    options = {"keep_ratio": RATIOS.get(name, 0.4), **OPTIONS.get(name, {})}

    def run(inputs):
        with vtprune.pruned(model, name, **options) as report:
            if name in CACHE:
                # the prompt is read unpruned; what was evicted shows in what follows
                found = list(torch.stack(tiny.greedy(model, inputs, 3).logits, 1))
                record = report.last.cached
                counts = zip(record.before[-1], record.after[-1], strict=True)
            else:
                found, counts = oracle.text_logits(model, inputs), report.tokens
            reports.append((list(counts), report.notes))
        return found

    try:
        if alone and (family not in tiny.NEWER or tiny.NEWER[family].apart):
            oracle.assert_batch_equals_rows(run, family, samples, tolerance)
        else:
            run(tiny.collate(family, samples))
    except (NotImplementedError, ValueError) as error:
        # raised by wrap: of a policy that the model is too short for, or whose site it cannot serve
        return Outcome("refused", (str(error),))
    tokens, notes = reports[0]
    pruned = any(after < before for before, after in tokens)
    return Outcome("pruned" if pruned else "whole", tuple(notes))


def families(kind: str) -> list[str]:
    """The families that have tiny models and take such prompts."""
    if kind == "image":
        return [*tiny.FAMILIES, *tiny.NEWER]
    return [*tiny.VIDEO_FAMILIES, *(name for name, newer in tiny.NEWER.items() if newer.clip is not None)]
