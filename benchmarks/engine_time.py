"""Times several things in turns, divides them round by round, and says whether a bound was met or noise hides it."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from benchmarks.measure import paired

WALL = paired.__kwdefaults__["clock"]
"""The stopwatch's own clock."""

Seconds = dict[str, list[float]]
"""Name -> seconds of each round."""


def clock_of(device: str, threads: int) -> tuple[str, dict]:
    """The name of the clock, and the arguments that make ``paired`` read it.

    One thread of a CPU is timed by its own CPU time, which others on the machine disturb least: they can still slow it
    down through caches and shared cores, but waiting for a core is not counted.
    """
    if device == "cpu" and threads == 1:
        return "CPU time of the one thread", {"clock": time.thread_time}
    return "wall clock", {}


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int, clock: Mapping = {}, tell=None) -> Seconds:
    """Seconds of each call in each round: A B C, then C B A, and so on, so that what drifts touches all alike.

    clock: of ``clock_of``. tell: called with the number of finished rounds.
    """
    seconds: Seconds = {name: [] for name in calls}
    for done in range(rounds):
        names = list(calls)[:: -1 if done % 2 else 1]
        if len(names) % 2:
            names.insert(0, None)
        for pair in zip(names[::2], names[1::2]):
            found = paired(*(calls[name] if name else _nothing for name in pair), warmup=0, runs=1, **clock)
            for name, part in zip(pair, (found["a"], found["b"])):
                if name:
                    seconds[name].append(part["seconds"])
        if tell:
            tell(done + 1)
    return seconds


def _nothing() -> None:
    pass


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median and extremes, as ``measure`` names them."""
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def scatter(seconds: Seconds) -> float:
    """By how much one time differs from another of the same call: the standard deviation of logarithms, all pooled."""
    squares, freedom = 0.0, 0
    for values in seconds.values():
        logs = [math.log(value) for value in values]
        squares += sum((log - statistics.mean(logs)) ** 2 for log in logs)
        freedom += len(logs) - 1
    return math.sqrt(squares / freedom) if freedom else 0.0


def median_interval(values: Sequence[float], noise: float = 0.0) -> tuple[float, float]:
    """Where the median of such values lies with 95 % confidence.

    By the sign test, whatever their distribution: the k smallest and the k largest are cut off, k as large as the
    confidence allows. Of fewer than 6 that says too little: then their extremes, and where ``noise`` is given, at least
    two standard errors of the median of as many ratios of two times that scatter by it.
    """
    if len(values) < 6:
        middle = statistics.median(values)
        away = middle * 2 * 1.25 * noise * math.sqrt(2 / len(values))
        return min(middle - away, *values), max(middle + away, *values)
    ordered, n, k = sorted(values), len(values), 0
    while 2 * sum(math.comb(n, i) for i in range(k + 1)) <= 0.05 * 2**n:
        k += 1
    cut = max(0, k - 1)
    return ordered[cut], ordered[n - 1 - cut]


@dataclass(frozen=True)
class Bound:
    """What a ratio should be: ``Bound(">=", 0.97)`` or ``Bound("<=", 1.02)``.

    Where it takes ``noise``, that is the ``scatter`` of the times that were divided.
    """

    sign: str
    limit: float

    def met(self, value: float) -> bool:
        return value >= self.limit if self.sign == ">=" else value <= self.limit

    def verdict(self, values: Sequence[float], noise: float = 0.0) -> str:
        """By the median; "noise" where its interval lies on both sides of the limit."""
        answer = "met" if self.met(statistics.median(values)) else "missed"
        sides = {self.met(end) for end in median_interval(values, noise)}
        return f"{answer}, but the noise exceeds the bound" if len(sides) > 1 else answer

    def judged(self, name: str, values: Sequence[float], noise: float = 0.0) -> dict:
        """The fields of a row: the values' spread and interval, the bound, the verdict."""
        low, high = median_interval(values, noise)
        more = {f"{name}_low": low, f"{name}_high": high, "bound": f"{name} {self.sign} {self.limit:g}"}
        return {**spread(name, values), **more, "verdict": self.verdict(values, noise)}


class HookTimes:
    """Microseconds that each call of a hook took: ``layer`` of the decoder's layers, ``other`` of all other modules.

    What reading the clock takes, measured beforehand, is taken off.
    """

    def __init__(self):
        self.layer: list[float] = []
        self.other: list[float] = []

    @property
    def seconds(self) -> float:
        return 1e-6 * (sum(self.layer) + sum(self.other))


@contextmanager
def hook_times(model: nn.Module, clock: Callable[[], float]) -> Iterator[HookTimes]:
    """Times every hook on the modules of ``model`` by ``clock``.

    WALL suits hooks of microseconds, of which the median counts: asking the system for CPU time slows down what comes
    next. ``time.thread_time`` suits sums. What a hook leaves to a GPU is not counted, and neither is torch's own slower
    way of calling a module that has hooks.
    """
    pruner = vars(model).get("_vtprune")
    if pruner is not None:
        # a plain decode step would free the layers of their hooks in the middle of the timing
        stays, pruner.sticky = pruner.sticky, True
        pruner.engage()
    times, layers = HookTimes(), set(model.model.language_model.layers)
    tables = [
        (hooks, times.layer if module in layers else times.other)
        for module in model.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        if hooks
    ]
    before = [dict(hooks) for hooks, _ in tables]
    idle: list[float] = []
    for _ in range(200):
        _timed(_nothing, idle, clock, 0.0)()
    for hooks, into in tables:
        for key, hook in hooks.items():
            hooks[key] = _timed(hook, into, clock, statistics.median(idle))
    try:
        yield times
    finally:
        for (hooks, _), old in zip(tables, before, strict=True):
            hooks.update(old)
        if pruner is not None:
            pruner.sticky = stays


def _timed(hook: Callable, into: list[float], clock: Callable[[], float], idle: float) -> Callable:
    def call(*args):
        start = clock()
        try:
            return hook(*args)
        finally:
            into.append(1e6 * (clock() - start) - idle)

    return call
