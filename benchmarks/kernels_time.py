"""Times operations of microseconds: on a GPU by its own events with cold caches, on a CPU by the stopwatch."""

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import cache

import torch

from benchmarks.engine_time import Seconds, in_turns
from benchmarks.policies_time import BRIEF, LONG, turns

FLUSH_BYTES = 1 << 30
"""Written before each call on a GPU: it clears the caches, and takes longer than the host needs to queue the call."""
BACK_TO_BACK = 20
"""Calls that are queued one after the other to see what a call costs the host, too."""


def timed(calls: Mapping[str, Callable[[], object]], rounds: int, device: str, clock: Mapping) -> Seconds:
    """Seconds of each call in each round, forth and back; what is over at once is called more often.

    On a GPU they are those between two events on its stream; a call that waits for the host shows that.
    """
    if device != "cpu":
        return _by_events(calls, rounds)
    return turns(calls, rounds, clock)


def back_to_back(calls: Mapping[str, Callable[[], object]], rounds: int) -> Seconds:
    """Wall seconds of one call among ``BACK_TO_BACK`` that follow each other: of the host or of the device, the longer.

    Caches are warm. This is what a short operation costs in a model whose host does not run ahead.
    """

    def repeated(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(BACK_TO_BACK):
                call()

        return run

    seconds = in_turns({name: repeated(call) for name, call in calls.items()}, rounds)
    return {name: [value / BACK_TO_BACK for value in values] for name, values in seconds.items()}


@cache
def _flush() -> torch.Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")


def _by_events(calls: Mapping[str, Callable[[], object]], rounds: int) -> Seconds:
    """As ``policies_time.turns``: brief calls three times as often, long ones once."""
    seconds = _event_round(list(calls.items()))
    whole = sum(seconds.values())
    more = 3 * rounds - 1 if whole < BRIEF else rounds - 1 if whole < LONG else 0
    found = [seconds, *(_event_round(list(calls.items())[:: 1 if i % 2 else -1]) for i in range(more))]
    return {name: [one[name] for one in found] for name in calls}


def _event_round(calls: Sequence[tuple[str, Callable[[], object]]]) -> dict[str, float]:
    events = {}
    for name, call in calls:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        _flush().zero_()
        start.record()
        call()
        end.record()
        events[name] = start, end
    torch.cuda.synchronize()
    return {name: 1e-3 * start.elapsed_time(end) for name, (start, end) in events.items()}


class Teller:
    """Prints what is done next with the time since the start; knows when the budget is spent."""

    def __init__(self, budget: float | None):
        self.start, self.budget = datetime.now(timezone.utc), budget

    @property
    def seconds(self) -> float:
        return (datetime.now(timezone.utc) - self.start).total_seconds()

    @property
    def spent(self) -> bool:
        return self.budget is not None and self.seconds > self.budget

    def __call__(self, line: str) -> None:
        print(f"[{self.seconds:4.0f} s] {line}", file=sys.stderr, flush=True)
