"""``vtprune run --compare frames``: what else as many visual tokens could be spent on, fewer frames or more."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vtprune.cli.clips import Clip, read_clip
from vtprune.cli.measure import Look, Times, Trial, middle
from vtprune.policies.base import KEEP_RATIO_IS, POLICIES, keep_ratio_is
from vtprune.report import Report

MORE = 10
"""How many times the frames that the budget pays for unpruned are read to be pruned, where the clip has them."""

SLACK = 0.05
"""By how much of the budget a row may miss it and still be marked: grids and merging do not fit exactly."""

FEWER_UNPRUNED, MORE_PRUNED = "fewer frames, unpruned", "more frames, pruned"


@dataclass(frozen=True)
class Plan:
    """One more run: so many frames under a policy, which for an unpruned run keeps everything."""

    name: str
    frames: int
    policy: Any
    pruned: bool


@dataclass(frozen=True)
class Row:
    """What came of a plan. report: of one prefill, which tells the visual tokens."""

    plan: Plan
    clip: Clip
    trial: Trial
    look: Look
    report: Report


def plans(report: Report, policy: Any, clip: Clip) -> list[Plan]:
    """What else to run, from what was kept of the clip."""
    before, budget, n = report.tokens[0][0], budget_of(report, policy), len(clip.frames)
    few = min(clip.frames.count, max(1, round(n * budget / before)))
    many = min(clip.frames.count, MORE * few)
    found = [Plan(FEWER_UNPRUNED, few, POLICIES["none"](), False)]
    # otherwise the run that was asked for reads as many already
    if many > n:
        found.append(Plan(MORE_PRUNED, many, _keeping(budget, before * many / n, report, policy), True))
    return found


def _keeping(budget: int, of: float, report: Report, policy: Any) -> Any:
    """The policy with options that keep so many visual tokens of about ``of``."""
    together = len(report.last.layout.rows[0].sources) == 1 or getattr(policy, "budget", None) == "prompt"
    if hasattr(policy, "n_keep") and together:
        return dataclasses.replace(policy, keep_ratio=None, n_keep=budget)
    # a number would be that of each frame where frames are images
    others = {name: None for name in ("n_keep", "keep_flops") if hasattr(policy, name)}
    if keep_ratio_is(policy) == "published" and policy.keep_ratio is not None:
        # in the publication's own unit, which grows with the tokens like any other
        budget = round(policy.keep_ratio * report.tokens[0][0])
    return dataclasses.replace(policy, keep_ratio=min(1.0, budget / of), **others)


def budget_of(report: Report, policy: Any) -> int:
    """The visual tokens that a policy keeps: after its last site, or on average over the layers if it counts so."""
    before, after = report.tokens[0]
    if not by_layer(policy):
        return after
    asked = policy.keep_ratio if keep_ratio_is(policy) != "published" else None
    return round(layer_mean(report) if asked is None else asked * before)


def by_layer(policy: Any) -> bool:
    """Whether a policy's keep_ratio tells what the layers of the decoder see, as FrameFusion's does."""
    return keep_ratio_is(policy) != "final"


def layer_mean(report: Report) -> float:
    """Visual tokens that a decoder layer's attention sees, mean over the layers."""
    lengths = [n[0] if isinstance(n, tuple) else n for n in report.last.lengths[0]]
    return statistics.fmean(lengths) - (int(report.last.layout.rows[0].real.sum()) - len(report.last.offered[0]))


def read_again(clip: Clip, n: int, partial: bool) -> Clip:
    """Another number of frames of a clip."""
    return read_clip(clip.path, n=n, partial=partial)


def values(result: dict, clip: Clip, report: Report, rows: Mapping[str, Row], times: Mapping[str, Times]) -> dict:
    """The comparison as plain values; ``result`` holds the runs with as many frames as asked for."""
    policy = report.policy
    budget, counted = budget_of(report, policy), by_layer(policy)
    before = report.tokens[0][0]
    asked = {"frames": len(clip.frames), "visual_tokens_before": before, "decode_s": clip.decode_s}
    lines = [
        _line(rows[FEWER_UNPRUNED], times),
        {
            "name": "unpruned",
            **asked,
            "visual_tokens": before,
            "layer_mean": float(before),
            **_measured(result, "unpruned"),
        },
        {
            "name": "pruned",
            **asked,
            "visual_tokens": report.tokens[0][1],
            "layer_mean": layer_mean(report),
            **_measured(result, "pruned"),
        },
        *(_line(rows[name], times) for name in rows if name == MORE_PRUNED),
    ]
    for line in lines:
        spent = line["layer_mean"] if counted else line["visual_tokens"]
        # a frame has so many tokens that the nearest number of them may be all that can be had
        frame = before / len(clip.frames) if line["name"] == FEWER_UNPRUNED else 1.0
        line["same_budget"] = abs(spent - budget) <= max(frame, SLACK * budget)
    count = clip.frames.count
    missing = f"the clip has {count:,} frames; no more can be pruned to as many" if count <= len(clip.frames) else ""
    return {
        "budget": budget,
        "counted": KEEP_RATIO_IS["layers" if counted else "final"],
        "rows": lines,
        "note": missing,
    }


def _measured(result: dict, name: str) -> dict[str, Any]:
    one = result[name]
    return {key: one[key] for key in ("answer", "prefill_ms", "kv_bytes")} | {"notes": one.get("notes", [])}


def _line(row: Row, times: Mapping[str, Times]) -> dict[str, Any]:
    before, after = row.report.tokens[0]
    return {
        "name": row.plan.name,
        "frames": len(row.clip.frames),
        "visual_tokens_before": before,
        "decode_s": row.clip.decode_s,
        "visual_tokens": after,
        "layer_mean": layer_mean(row.report),
        "answer": row.look.answer,
        "prefill_ms": middle(times[row.plan.name].prefill),
        "kv_bytes": row.look.kv_bytes,
        "notes": row.report.notes,
    }
