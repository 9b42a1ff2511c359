"""Generated clips: shapes come, move and go, digits flash up; what happens when is known, so it can be asked about.

The same seed gives the same frames and questions on every machine. One shape at a time is on the screen, each in a
colour of its own; digits are shown beside it, sometimes for two frames only. Most frames of a long clip repeat.
"""

from dataclasses import dataclass

import numpy as np

from vtprune.embedded.clip_questions import ClipQuestion, Event, ask
from vtprune.embedded.digit_font import glyph
from vtprune.embedded.drawing import COLORS, SHAPES, background, paint, shape_coverage
from vtprune.embedded.drawing import SIZE as SCENE_SIZE
from vtprune.embedded.scenes import SPLITS

SIDE = 64  # pixels per side of a frame
SLICE = 2  # frames that the vision tower looks at together; events begin and end with a slice
FRAMES = 16  # of an ordinary clip
LONG = 64  # of a long one
SHAPE_SIDES = (22, 28)  # pixels, upper end excluded
SPEEDS = (2, 4)  # pixels per frame, upper end excluded
MARGIN = 2  # pixels between an object and the border
DIGIT_PLACES = (4, 20, 36)  # left and top edges: digits lie on a lattice
NOISE = 3.0  # of a pixel from frame to frame, in steps of 1/255, either way
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "nowhere": (0, 0)}
_STREAM = 64  # keeps the random numbers of clips apart from those of scenes


@dataclass(frozen=True)
class Clip:
    """frames: (T, SIDE, SIDE, 3) uint8; events: what is seen, in order of appearance; questions: what can be asked."""

    frames: np.ndarray
    events: tuple[Event, ...]
    questions: tuple[ClipQuestion, ...]


def make_clip(seed: int, split: str = "train", frames: int = FRAMES) -> Clip:
    """The clip number ``seed`` of a split ("train" or "test") with so many frames, an even number from 8 on."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if frames % SLICE or frames < 4 * SLICE:
        raise ValueError(f"a clip has an even number of frames, 8 or more; got {frames}")
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), _STREAM, frames]))
    events = _script(rng, frames)
    return Clip(_film(rng, split, frames, events), events, tuple(ask(rng, events, frames)))


def _script(rng: np.random.Generator, frames: int) -> tuple[Event, ...]:
    """Which shapes and digits are seen, when, and where."""
    slices = frames // SLICE
    still = rng.random() < 0.15
    n = 1 if still else int(rng.integers(1 if slices < 6 else 2, min(4, slices // 2) + 1))
    names = [SHAPES[i] for i in rng.permutation(len(SHAPES))[:n]]
    colors = [list(COLORS)[i] for i in rng.permutation(len(COLORS))]
    cast = list(zip(names, colors, strict=False))
    if n >= 3 and rng.random() < 0.25:
        cast[-1] = cast[int(rng.integers(n - 2))]  # an earlier shape returns
    spans = [(0, slices)] if still else _spans(rng, slices, n)
    events = [
        _shape_event(rng, name, color, SLICE * first, SLICE * last, still)
        for (name, color), (first, last) in zip(cast, spans, strict=True)
    ]
    digits = []
    for label, color in zip(rng.permutation(10)[: rng.integers(3)], colors[n:], strict=False):
        event = _digit_event(rng, str(label), color, slices, events, digits)
        digits += [event] if event else []
    return tuple(sorted(events + digits, key=lambda event: (event.first, event.kind == "digit")))


def _spans(rng: np.random.Generator, slices: int, n: int) -> list[tuple[int, int]]:
    """(first, last) slices, ``last`` excluded, of ``n`` shapes: two or more each, one after another, with pauses."""
    weights = rng.integers(1, 7, 2 * n + 1).cumsum()
    extra = np.bincount(
        np.searchsorted(weights, rng.integers(0, weights[-1], slices - 2 * n), side="right"), minlength=2 * n + 1
    )
    spans, now = [], 0
    for i in range(n):
        now += int(extra[2 * i])
        last = now + 2 + int(extra[2 * i + 1])
        spans.append((now, last))
        now = last
    return spans


def _shape_event(rng: np.random.Generator, name: str, color: str, first: int, last: int, still: bool) -> Event:
    """A shape that moves one way for some time, or not at all."""
    side, speed = int(rng.integers(*SHAPE_SIDES)), int(rng.integers(*SPEEDS))
    direction = "nowhere" if still or rng.random() < 0.25 else list(STEPS)[rng.integers(4)]
    room = SIDE - side - 2 * MARGIN
    moves = min(last - first - 1, room // speed)  # frames that differ from the one before
    start = int(rng.integers(0, last - first - 1 - moves + 1))
    walked = speed * np.clip(np.arange(last - first) - start, 0, moves)
    dx, dy = STEPS[direction]
    place = [int(MARGIN + rng.integers(0, room - abs(d) * walked[-1] + 1)) for d in (dx, dy)]
    left, top = (p + (walked[-1] if d < 0 else 0) + d * walked for p, d in zip(place, (dx, dy), strict=True))
    path = tuple(
        (int(x), int(y)) for x, y in zip(np.broadcast_to(left, walked.shape), np.broadcast_to(top, walked.shape))
    )
    return Event("shape", name, color, first, last, direction, side, path)


def _digit_event(
    rng: np.random.Generator, name: str, color: str, slices: int, shapes: list[Event], digits: list[Event]
) -> Event | None:
    """A digit that is shown for one slice or a few, apart from the shape and the other digit; None if nowhere free."""
    for _ in range(30):
        length = 1 if rng.random() < 0.6 else int(rng.integers(2, 4))
        first = SLICE * int(rng.integers(0, slices - length + 1))
        last = first + SLICE * length
        left, top = (int(DIGIT_PLACES[i]) for i in rng.integers(0, len(DIGIT_PLACES), 2))
        event = Event(
            "digit", name, color, first, last, "nowhere", glyph(name).shape[0], ((left, top),) * (last - first)
        )
        if any(event.first < d.last and d.first < event.last for d in digits):
            continue
        if not any(event.touches(shape, MARGIN) for shape in shapes):
            return event
    return None


def _film(rng: np.random.Generator, split: str, frames: int, events: tuple[Event, ...]) -> np.ndarray:
    """(frames, SIDE, SIDE, 3) uint8: the events before a background that only flickers."""
    left, top = rng.integers(0, SCENE_SIZE - SIDE + 1, 2)
    scenery = background(rng, split)[top : top + SIDE, left : left + SIDE]
    film = scenery + NOISE * (2 * rng.random((frames, SIDE, SIDE, 1), dtype=np.float32) - 1)
    for event in events:
        cover = glyph(event.name) if event.kind == "digit" else shape_coverage(event.name, event.side)
        shade = np.array(COLORS[event.color]) * rng.uniform(0.85, 1.0)
        for frame, (x, y) in zip(range(event.first, event.last), event.path, strict=True):
            paint(film[frame], cover, x, y, shade)
    return np.clip(film + 0.5, 0, 255).astype(np.uint8)
