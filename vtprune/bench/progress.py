"""How far a run is: a bar for each task on a terminal, elsewhere a line now and then, on the error stream."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vtprune.cli.console import console, printable
from vtprune.clock import now

SECONDS = 10.0
"""Between two lines where there is no terminal."""

RECENT = 32
"""Steps that the rate is measured over: it follows a task that gets slower, and forgets the loading of the model."""


@dataclass
class Count:
    """Answers of one task. done: with those of earlier runs. steps: (seconds, done) of the last of them."""

    done: int
    total: int
    failed: int = 0
    steps: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def rate(self) -> float | None:
        """Answers a second; None while it is not known."""
        if len(self.steps) < 2:
            return None
        (start, before), (end, after) = self.steps[0], self.steps[-1]
        return (after - before) / (end - start) if end > start else None

    @property
    def text(self) -> str:
        """ "20 of 100 answers, 1 failed, 4.0 a second, 20 s left"."""
        parts = [f"{self.done:,} of {self.total:,} answers"]
        parts += [f"{self.failed:,} failed"] if self.failed else []
        if self.rate and self.done < self.total:
            slow = self.rate < 0.1
            parts.append(f"{60 * self.rate:.1f} a minute" if slow else f"{self.rate:.1f} a second")
            parts.append(f"{in_words((self.total - self.done) / self.rate)} left")
        return ", ".join(parts)


def in_words(seconds: float) -> str:
    """ "42 s", "12 min", "3 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Shows counts while it is entered; without a terminal nothing moves and nothing is overwritten.

    counts: by task, in the order of the work. clock: seconds.
    """

    def __init__(self, counts: Mapping[str, Count], clock: Callable[[], float] = now):
        self.counts, self._clock = dict(counts), clock
        self._bars: dict[str, Any] = {}
        self._shown = self._drawn = None

    def __enter__(self) -> Progress:
        self._told = self._last = self._clock()
        if sys.stderr.isatty():
            self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn is not None:
            self._drawn.stop()

    def add(self, task: str, answers: int, failed: int = 0) -> None:
        """Counts answers that are on the disk."""
        count, time = self.counts[task], self._clock()
        if not count.steps:
            # it began when the last answer to something else was there
            count.steps.append((self._last, count.done))
        count.done += answers
        count.failed += failed
        count.steps.append((time, count.done))
        self._last = time
        if self._drawn is not None:
            self._drawn.update(self._bars[task], completed=count.done, said=count.text)
        elif time - self._told >= SECONDS or count.done == count.total:
            self._told = time
            sys.stderr.write(f"{printable(task)}: {count.text}\n")
            sys.stderr.flush()

    def _draw(self) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[said]}")
        self._drawn = Bars(*columns, console=console(error=True), refresh_per_second=4)
        for task, count in self.counts.items():
            bar = self._drawn.add_task(printable(task), total=count.total, completed=count.done, said=count.text)
            self._bars[task] = bar
        self._drawn.start()
