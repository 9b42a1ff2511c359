"""Runs a plan: gives the missing pieces of work to an engine and stores what comes back."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from vtprune.bench.plan import Plan
from vtprune.bench.progress import Count, Progress, in_words
from vtprune.bench.store import Store
from vtprune.bench.units import Entry, build_units, keys
from vtprune.clock import now

ENGINES = {"local": "vtprune.bench.engine_local", "ray": "vtprune.bench.engine_ray"}
"""Modules with ``results(plan, units, **options)``, which yields the rows of one unit after the other."""


@dataclass(frozen=True)
class Ran:
    """What a run did. rows: answers that it stored. failed: of those. before: that were there. seconds: it took.

    why: the error of the first failure.
    """

    rows: int
    failed: int
    before: int
    seconds: float
    why: str | None = None


def run(
    plan: Plan,
    store: Store,
    asked: Mapping[str, Sequence[Entry]],
    *,
    batch: int = 1,
    engine: str = "local",
    retry_failed: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Ran:
    """Answers what is missing in the store, and shows how far it is.

    asked:        the questions of each task of the plan, in order. batch: how many go through the model together.
    engine:       one of ``ENGINES``. options: what it takes beside plan and units.
    retry_failed: asks again what failed before.

    Raises KeyboardInterrupt after a line that says how to go on; ValueError where the engine gave rows that nobody
    asked for, or not all.
    """
    done, wanted = store.done(retry_failed), Counter()
    there = Counter()
    for key in keys(plan, asked):
        wanted[key[0]] += 1
        there[key[0]] += key in done
    units = build_units(plan, asked, done, batch)
    start, stored, errors = now(), 0, []
    if units:
        results = import_module(ENGINES[engine]).results(plan, units, **(options or {}))
        counts = {task: Count(there[task], wanted[task]) for task in wanted}
        missing = {(unit.task, q, name) for unit in units for q in unit.questions for name in unit.conditions}
        try:
            with closing(results), Progress(counts) as progress:
                for rows in results:
                    failures = _store(store, rows, missing)
                    progress.add(rows[0]["task"], len(rows), len(failures))
                    stored += len(rows)
                    errors += failures
        except KeyboardInterrupt:
            have = f"{sum(there.values()) + stored:,} of {sum(wanted.values()):,}"
            sys.stderr.write(
                f"interrupted: {have} answers are in {store.folder}; the same command goes on from there\n"
            )
            raise
        if missing:
            raise ValueError(
                f"the engine {engine!r} left out {len(missing)} answers, such as {' / '.join(min(missing))}"
            )
    return Ran(stored, len(errors), sum(there.values()), now() - start, errors[0] if errors else None)


def _store(store: Store, rows: Sequence[Mapping[str, Any]], missing: set[tuple[str, str, str]]) -> list[str]:
    """Stores rows and takes them off what is missing; the errors of those that are failures."""
    found = [(row["task"], row["question"], row["condition"]) for row in rows]
    odd = [key for key in found if key not in missing]
    if odd or not found:
        raise ValueError(f"an engine gave rows that nobody asked for: {' / '.join(odd[0]) if odd else 'none at all'}")
    store.append(rows)
    missing.difference_update(found)
    return [row["error"] for row in rows if row["error"] is not None]


def summary_line(ran: Ran, folder: Any) -> str:
    """What a run did, in one sentence."""
    new = f"{ran.rows:,} answers in {in_words(ran.seconds)}" if ran.rows else "nothing was missing"
    failed = f", {ran.failed:,} of them failures" if ran.failed else ""
    before = f", {ran.before:,} were there" if ran.before else ""
    return f"{new}{failed}{before}: {folder}"
