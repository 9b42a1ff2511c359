"""How often things are timed in turns: what is over at once more often, what takes long less often."""

from collections.abc import Callable, Mapping

from benchmarks.engine_time import Seconds, in_turns

LONG, BRIEF = 2.0, 0.2
"""Seconds of all calls together: from LONG on the first round, else a warm-up, counts; below BRIEF there are more."""
BUDGET = 20.0
"""Seconds that the rounds of long calls may take, except that there is always one."""


def turns(calls: Mapping[str, Callable[[], object]], rounds: int, clock: Mapping) -> Seconds:
    """Seconds of each call in each round, forth and back: ``rounds`` of them, three times as many of brief calls."""
    first = in_turns(calls, 1, clock)
    whole = sum(values[0] for values in first.values())
    if whole < LONG:
        return in_turns(calls, 3 * rounds if whole < BRIEF else rounds, clock)
    more = min(rounds, max(1, int(BUDGET / whole))) - 1
    # the first round went forth, the next one goes back
    again = in_turns(dict(reversed(calls.items())), more, clock)
    return {name: first[name] + again[name] for name in calls}
