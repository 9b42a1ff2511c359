"""One worker, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vtprune.bench.plan import Plan, Unit


def results(
    plan: Plan, units: Iterable[Unit], *, worker: Callable[[Plan], Any] | None = None
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each unit, in the order of the units; of a worker with ``pieces(unit)`` each piece when it is done.

    worker: what is made of the plan, something with ``do(unit)``; ``vtprune.bench.work.Worker`` if None.
    """
    if worker is None:
        from vtprune.bench.work import Worker as worker
    made = worker(plan)
    for unit in units:
        if hasattr(made, "pieces"):
            yield from made.pieces(unit)
        else:
            yield made.do(unit)
