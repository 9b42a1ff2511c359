"""Which frames of a clip or of a part of it to take: so many, so many a second, or those shown at given times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vtprune.video.timeline import Timeline

SPREADS = ("linspace", "centres", "starts")

ROUNDING = 1e-3
"""Seconds: containers round to milliseconds, so a frame that begins this much later than asked for still counts."""


@dataclass(frozen=True, eq=False)
class Wish:
    """The frames that are asked for, by exactly one of ``n``, ``fps`` and ``timestamps``; see ``read_frames``.

    Raises ValueError for numbers that are none, and for more or less than one way of asking.
    """

    n: int | None = None
    fps: float | None = None
    timestamps: Sequence[float] | None = None
    n_max: int = 768
    spread: str = "linspace"
    start: float | None = None
    end: float | None = None

    @property
    def of_a_part(self) -> bool:
        """Whether frames of a part of the clip are asked for."""
        return self.start is not None or self.end is not None

    def __post_init__(self):
        asked = [name for name in ("n", "fps", "timestamps") if getattr(self, name) is not None]
        if len(asked) != 1:
            got = f"{' and '.join(asked)} together" if asked else "none of them"
            raise ValueError(f"give one of n (frames), fps (frames a second) or timestamps (seconds); got {got}")
        for name in ("n", "n_max"):
            value = getattr(self, name)
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if value is not None and not (whole and value >= 1):
                raise ValueError(f"{name} is a number of frames, 1 or more; got {value!r}")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps is how many frames of each second are taken, above 0; got {self.fps!r}")
        if self.spread not in SPREADS:
            raise ValueError(f"spread is one of {', '.join(SPREADS)}; got {self.spread!r}")
        if self.timestamps is not None:
            times = np.asarray(self.timestamps, dtype=np.float64)
            if times.ndim != 1 or not len(times) or not np.isfinite(times).all():
                raise ValueError(f"timestamps is a list of one or more seconds; got {self.timestamps!r}")
        self._check_part()

    def _check_part(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is in seconds from the clip's first frame, 0 or more; got {value!r}")
        if self.end is not None and not self.end > (self.start or 0):
            raise ValueError(
                f"start is before end, in seconds; got start={self.start!r} and end={self.end!r}, with nothing between"
            )
        if self.of_a_part and self.timestamps is not None:
            raise ValueError(
                "timestamps say themselves which frames count; give start and end with n or fps, "
                f"got start={self.start!r}, end={self.end!r} and {len(self.timestamps)} timestamps"
            )


def choose(wish: Wish, timeline: Timeline) -> tuple[np.ndarray, str]:
    """Rows of the timeline as (T,) int64, and a note on what differs from the wish.

    Raises ValueError for timestamps and for a start that the clip does not reach.
    """
    if not wish.of_a_part:
        return _choose(wish, timeline)
    part, first, note = _part(wish, timeline)
    rows, more = _choose(wish, part)
    where = f"from {wish.start or 0:g} s to {'the end' if wish.end is None else f'{wish.end:g} s'}: "
    return rows + first, "; ".join(filter(None, (note, more and where + more)))


def _choose(wish: Wish, timeline: Timeline) -> tuple[np.ndarray, str]:
    if wish.timestamps is not None:
        return _at(np.asarray(wish.timestamps, dtype=np.float64), timeline), ""
    if wish.n is not None:
        return _spread(int(wish.n), wish.spread, timeline)
    rows = _every_second(wish.fps, timeline)
    if len(rows) > wish.n_max:
        note = f"{wish.fps:g} frames a second are {len(rows)} frames; n_max={wish.n_max} of all are spread evenly"
        return _spread(wish.n_max, wish.spread, timeline)[0], note
    if len(rows) == len(timeline.seconds) < timeline.duration * wish.fps - 0.5:
        return rows, _every(f"{wish.fps:g} frames a second", timeline)
    return rows, ""


def _part(wish: Wish, timeline: Timeline) -> tuple[Timeline, int, str]:
    """The frames shown in [start, end], their first one's row, and a note where the clip is over before ``end``.

    Times of the part count from ``start``: its first frame may have begun before it, at a time below 0.
    """
    clip_end = max(timeline.duration, float(timeline.seconds[-1]))
    start, end = wish.start or 0.0, clip_end if wish.end is None else wish.end
    if start >= clip_end and start > timeline.seconds[-1]:
        raise ValueError(
            f"the clip runs from 0 to {timeline.duration:.3f} s, and nothing is shown from start={start:g} s on. "
            "Times count from the first frame"
        )
    note = ""
    if end > clip_end + ROUNDING:
        note = f"the clip ends at {clip_end:.3f} s, before end={end:g} s"
    first, last = _shown(np.array([start, end]), timeline)
    seconds = timeline.seconds[first : last + 1] - start
    return replace(timeline, seconds=seconds, duration=min(end, clip_end) - start), int(first), note


def _every(asked: str, timeline: Timeline) -> str:
    return f"{asked} were asked for; the clip has {len(timeline.seconds)}, and each is here once"


def _every_second(fps: float, timeline: Timeline) -> np.ndarray:
    """The frames that are shown at a multiple of 1 / fps: found frame by frame, so a wrong duration costs nothing."""
    slack = _slack(timeline.seconds)
    begins = timeline.seconds - slack
    # of a part that one frame fills, the last one may have begun before 0
    end = max(timeline.duration, max(float(timeline.seconds[-1]), 0) + 2 * slack)
    ends = np.append(timeline.seconds[1:], end) - slack
    return np.flatnonzero(np.maximum(np.ceil(begins * fps), 0) / fps < ends)


def _spread(n: int, spread: str, timeline: Timeline) -> tuple[np.ndarray, str]:
    count = len(timeline.seconds)
    if n >= count:
        return np.arange(count), _every(f"{n} frames", timeline) if n > count else ""
    steps, seconds = np.arange(n), timeline.seconds
    if np.abs(seconds - np.linspace(seconds[0], seconds[-1], count)).max() <= ROUNDING:
        # a constant rate: in whole numbers, free of rounding
        if spread == "linspace":
            return steps * (count - 1) // max(n - 1, 1), ""
        return (2 * steps + (spread == "centres")) * count // (2 * n), ""
    if spread == "linspace":
        times = np.linspace(0, seconds[-1], n)
    else:
        times = (steps + (0.5 if spread == "centres" else 0)) * timeline.duration / n
    return _distinct(_shown(times, timeline), count), ""


def _distinct(rows: np.ndarray, count: int) -> np.ndarray:
    """Ascending rows, moved to later ones where two are the same, and to earlier ones where the clip ends."""
    steps = np.arange(len(rows))
    rows = np.maximum.accumulate(rows - steps) + steps
    return np.minimum(rows, count - len(rows) + steps)


def _at(times: np.ndarray, timeline: Timeline) -> np.ndarray:
    end = max(timeline.duration, float(timeline.seconds[-1])) + ROUNDING
    outside = times[(times < -ROUNDING) | (times > end)]
    if len(outside):
        raise ValueError(
            f"the clip runs from 0 to {timeline.duration:.3f} s; timestamps asks for {outside[0]:.3f} s. "
            "Times count from the first frame"
        )
    return _shown(times, timeline)


def _shown(times: np.ndarray, timeline: Timeline) -> np.ndarray:
    """The frame that is shown at each time: the last one that began by then."""
    rows = np.searchsorted(timeline.seconds, times + _slack(timeline.seconds), side="right") - 1
    return np.clip(rows, 0, len(timeline.seconds) - 1)


def _slack(seconds: np.ndarray) -> float:
    gaps = np.diff(seconds)
    return min(ROUNDING, float(gaps.min()) / 4) if len(gaps) else ROUNDING
