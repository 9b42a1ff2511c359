"""Times of the first token and of decode steps far on, in turns with the unpruned model, and what their bytes allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from benchmarks.decode_conditions import NONE, Condition
from benchmarks.decode_model import Decoding, Runner, runner, select_seconds, weight_bytes
from benchmarks.engine_model import cache_bytes
from benchmarks.engine_time import Seconds, in_turns, median_interval, ratios, spread

WARMUP = 2
"""Steps that are not timed."""


def group_rows(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    conditions: Sequence[Condition],
    generated: Sequence[int],
    rounds: int,
    steps: int,
    clock: Mapping,
) -> list[dict]:
    """Rows of some conditions and of the unpruned model, which runs in turns with them.

    generated: so many tokens of an answer are in the cache when steps are timed, ascending, each more than ``steps``.
    rounds: prompts that each of them reads. steps: that each of them makes at every length.
    """
    runners, rows = {}, []
    for one in (Condition(), *conditions):
        try:
            runners[one.name] = runner(model, inputs, one)
        except ValueError as error:
            rows.append({"what": "first token", **head(one), "skipped": str(error)})
    seconds = in_turns({name: one.first_token for name, one in runners.items()}, rounds, clock)
    rows = first_rows(runners, seconds) + rows
    decoding = {name: one.decoding() for name, one in runners.items()}
    for one in runners.values():
        one.cache = None
    for length in generated:
        for one in decoding.values():
            one.jump(length - steps - WARMUP)
            for _ in range(WARMUP):
                one()
        seconds = in_turns(decoding, steps, clock)
        rows += step_rows(runners, decoding, seconds, weight_bytes(model))
    return rows


def head(one: Condition) -> dict:
    """What a row begins with."""
    return {"policy": one.policy, "kind": one.kind, "keep_ratio": one.keep_ratio}


def first_rows(runners: Mapping[str, Runner], seconds: Seconds) -> list[dict]:
    """Seconds until the first token, and keys and values held then. speedup: unpruned over own, round by round."""
    whole, rows = cache_bytes(runners[NONE].cache), []
    for name, one in runners.items():
        row = {"what": "first token", **head(one.condition), **compared(seconds, name)}
        held = cache_bytes(one.cache)
        if one.report is not None:
            row |= {"select_seconds": select_seconds(one), "reported": one.report.kv_bytes}
        rows.append({**row, "kv_bytes": held, "kv_share": held / whole})
    return rows


def step_rows(
    runners: Mapping[str, Runner], decoding: Mapping[str, Decoding], seconds: Seconds, weights: int
) -> list[dict]:
    """Seconds of a step by now. limit: how many times as fast it were if only bytes that are read took time."""
    whole, rows = weights + cache_bytes(decoding[NONE].cache), []
    for name, one in decoding.items():
        held = cache_bytes(one.cache)
        row = {"what": "decode step", **head(runners[name].condition), "generated": one.done}
        row |= {"weight_bytes": weights, "kv_bytes": held, "limit": whole / (weights + held)}
        rows.append({**row, **compared(seconds, name)})
    return rows


def compared(seconds: Seconds, name: str) -> dict:
    """Times with their spread, and how many times as fast as the unpruned model, with the median's 95 % interval."""
    found = {**spread("seconds", seconds[name]), "runs": len(seconds[name])}
    if name == NONE:
        return found
    faster = ratios(seconds[NONE], seconds[name])
    low, high = median_interval(faster)
    return {**found, **spread("speedup", faster), "speedup_low": low, "speedup_high": high}


def grouped(conditions: Sequence[Condition]) -> dict[str, list[Condition]]:
    """Conditions that are timed together: those of one policy."""
    groups: dict[str, list[Condition]] = {}
    for one in conditions:
        groups.setdefault(one.policy, []).append(one)
    return groups
