"""What policies of the cache cost in answers: rows of all subjects gathered, with paired differences and intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.decode_asking import FIRST_TURN, SECOND_TURNS, ask
from benchmarks.decode_conditions import NONE, Condition
from benchmarks.video_ledger import Ledger
from vtprune.bench.paired import paired
from vtprune.bench.sheet import Column
from vtprune.bench.statistics import clustered, mean_interval, score_interval
from vtprune.embedded import load_image, load_video

LOADERS = {"image": load_image, "video": load_video}
LOT = "cache_random"
"""What a policy of the cache has to beat."""
TURNS = {"second-turn": SECOND_TURNS, "first-turn": (FIRST_TURN,)}


def answer_rows(
    models: Sequence[str],
    turns: Sequence[str],
    seeds: Sequence[int],
    conditions: Sequence[Condition],
    ledger: Ledger,
    tell: Callable[[str], None],
) -> list[dict]:
    """A row for each model, turn and condition. What the ledger has is not asked again."""
    rows, names = [], [Condition().name, *(one.name for one in conditions)]
    by_name = {one.name: one for one in conditions}
    for kind in models:
        model, processor = LOADERS[kind]()
        for turn in turns:
            found: dict[str, list[dict]] = {name: [] for name in names}
            for seed in seeds:
                piece = f"{kind} {turn} {seed} "
                lacking = [by_name[name] for name in names[1:] if piece + name not in ledger.found]
                if lacking or piece + names[0] not in ledger.found:
                    for name, row in ask(model, processor, kind, seed, turn, lacking):
                        if piece + name not in ledger.found:
                            ledger.add(piece + name, row)
                    tell(f"{kind}, {turn}: {seed} of {seeds[0]} to {seeds[-1]}")
                for name in names:
                    found[name].append(ledger.found[piece + name])
            rows += judged({"model": kind, "turn": turn}, found, seeds, [Condition(), *conditions])
    return rows


def judged(
    about: Mapping[str, Any], found: Mapping[str, Sequence[Mapping]], seeds: Sequence[int], asked: Sequence[Condition]
) -> list[dict]:
    """A row for each condition, from those of each subject (as ``decode_asking`` gives them), by name.

    accuracy, same, kl: means over questions, with intervals whose units are subjects. kv_share: of the unpruned bytes.
    over_unpruned: the paired difference in right answers; over: the same over others of the same ratio, pruned prompts
    and the lot. tokens: the mean length of unpruned answers.
    """
    owners = np.repeat([str(seed) for seed in seeds], [len(one["right"]) for one in found[NONE]])
    numbers = clustered(owners)
    columns = {one.name: _column(one.name, found[one.name]) for one in asked if "skipped" not in found[one.name][0]}
    whole, rows = _mean_bytes(found[NONE]), []
    for one in asked:
        row = {"what": "answers", **about, "policy": one.policy, "kind": one.kind, "keep_ratio": one.keep_ratio}
        if one.name not in columns:
            rows.append({**row, "skipped": found[one.name][0]["skipped"]})
            continue
        mine = columns[one.name]
        row |= {"subjects": len(seeds), "questions": len(owners), "kv_bytes": _mean_bytes(found[one.name])}
        row |= {"kv_share": row["kv_bytes"] / whole, "accuracy": float(mine.scores.mean())}
        row["accuracy_interval"] = score_interval(mine.scores, numbers)[0]
        kl = np.concatenate([unit["kl"] for unit in found[one.name]])
        for name, values in (("same", _hits(found[one.name], "same")), ("kl", kl)):
            row |= {name: float(values.mean()), f"{name}_interval": mean_interval(values, numbers)}
        if one.policy != NONE:
            row["over_unpruned"] = paired(mine, columns[NONE], owners)
            rivals = [r for r in asked if r.kind == "prefill" or r.policy == LOT]
            rivals = [r for r in rivals if r.keep_ratio == one.keep_ratio and r != one]
            row["over"] = {r.policy: paired(mine, columns[r.name], owners) for r in rivals if r.name in columns}
        else:
            row["tokens"] = float(np.mean(np.concatenate([unit["tokens"] for unit in found[NONE]])))
        rows.append(row)
    return rows


def _hits(units: Sequence[Mapping], name: str) -> np.ndarray:
    return np.array([int(digit) for unit in units for digit in unit[name]], dtype=np.float64)


def _column(name: str, units: Sequence[Mapping]) -> Column:
    scores = _hits(units, "right")
    return Column(name, {}, {}, scores, scores > 0.5)


def _mean_bytes(units: Sequence[Mapping]) -> float:
    return sum(unit["kv_bytes"] for unit in units) / len(units)
