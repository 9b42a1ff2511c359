"""From how many visual tokens on pruning pays: times of prompts that show more and more."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vtprune.bench.condition import Condition
from vtprune.bench.efficiency import Timed, measured
from vtprune.bench.question import Question
from vtprune.bench.work import Worker

COPIES = (1, 2, 4, 8)
"""How often the visuals of a question are shown."""


def break_even_rows(
    worker: Worker,
    spec: str,
    question: Question,
    conditions: Sequence[Condition],
    copies: Sequence[int] = COPIES,
    rounds: int = 10,
) -> Iterator[dict[str, Any]]:
    """Rows like those of ``efficiency.time_rows``, of one question whose visuals are shown once, twice, four times ...

    What does not fit into the model is a row with ``error``.
    """
    for n in copies:
        yield from measured(
            [
                (
                    {"task": spec, "condition": condition.name, "row": condition.row, "batch": 1, "copies": n},
                    functools.partial(Timed, worker, spec, [question], condition, copies=n),
                )
                for condition in conditions
            ],
            rounds,
            warm=1,
        )


def break_even(rows: Sequence[Mapping[str, Any]], name: str, whole: str = "full") -> float | None:
    """Visual tokens from which on a condition's first token comes sooner than the unpruned model's.

    The last crossing of the two times, linear between the sizes that were timed; 0 where it is sooner at every size,
    None where it is not sooner at the largest. rows: of ``break_even_rows``.
    """
    times: dict[int, dict[str, float]] = {}
    for row in rows:
        if "error" not in row and "copies" in row:
            times.setdefault(row["tokens"][0][0], {})[row["condition"]] = row["ttft_ms"]["median"]
    both = sorted(
        (tokens, found[name] - found[whole]) for tokens, found in times.items() if {name, whole} <= set(found)
    )
    if not both or both[-1][1] >= 0:
        return None
    crossing = 0.0
    for (n, later), (m, sooner) in zip(both, both[1:], strict=False):
        if later >= 0 > sooner:
            crossing = n + (m - n) * later / (later - sooner)
    return crossing
