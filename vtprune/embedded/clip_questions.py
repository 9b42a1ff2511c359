"""What can be asked about a clip, and what the answer is: one word, from what is seen when."""

from dataclasses import dataclass

import numpy as np

from vtprune.embedded.scenes import not_there

KINDS = ("color", "shape", "digit", "needle", "when", "order", "before", "move", "part", "count", "exists")
PARTS = ("beginning", "middle", "end")
NEEDLE = 2  # frames: a digit that is shown no longer is a needle
_UNSURE = 0.06  # of the clip: nothing is asked about the part of what is that near to another third


@dataclass(frozen=True)
class Event:
    """Something that is seen for a while.

    kind:        "shape" or "digit".
    name:        "circle", ..., or "0" to "9".
    color:       a key of ``COLORS``.
    first, last: frames, ``last`` excluded.
    direction:   "left", "right", "up", "down" or "nowhere".
    side:        of its square box, in pixels.
    path:        (left, top) of the box in each of its frames.
    """

    kind: str
    name: str
    color: str
    first: int
    last: int
    direction: str
    side: int
    path: tuple[tuple[int, int], ...]

    def box(self, frame: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in a frame in which it is seen, the last two excluded."""
        left, top = self.path[frame - self.first]
        return left, top, left + self.side, top + self.side

    def touches(self, other: "Event", gap: int) -> bool:
        """Whether the boxes come nearer than ``gap`` pixels in some frame."""
        for frame in range(max(self.first, other.first), min(self.last, other.last)):
            (a, b, c, d), (e, f, g, h) = self.box(frame), other.box(frame)
            if a < g + gap and e < c + gap and b < h + gap and f < d + gap:
                return True
        return False


@dataclass(frozen=True)
class ClipQuestion:
    """A question about a clip.

    kind:     one of ``KINDS``.
    text:     in English.
    answer:   one word.
    cue:      rows of ``Clip.events``: what the question speaks of.
    evidence: rows of ``Clip.events``: where the answer is seen.
    during:   (first, last) frames, ``last`` excluded, in which the evidence counts.
    """

    kind: str
    text: str
    answer: str
    cue: tuple[int, ...] = ()
    evidence: tuple[int, ...] = ()
    during: tuple[int, int] = (0, 1 << 30)


def ask(rng: np.random.Generator, events: tuple[Event, ...], frames: int) -> list[ClipQuestion]:
    """All questions about what is seen, with as many "yes" as "no"."""
    shapes = [i for i, event in enumerate(events) if event.kind == "shape"]
    digits = [i for i, event in enumerate(events) if event.kind == "digit"]
    questions = [*_looks(events), *_flashes(events, shapes, digits)]
    seen = [events[i].name for i in shapes]
    once = [i for i in shapes if seen.count(events[i].name) == 1]
    for i in once:
        text = f"Which way does the {events[i].name} move?"
        questions.append(ClipQuestion("move", text, events[i].direction, (i,), (i,)))
    for i in (*once, *digits):
        part = part_of(events[i], frames)
        if part:
            text = f"In which part of the clip does the {events[i].name} appear?"
            questions.append(ClipQuestion("part", text, part, (i,), (i,)))
    if len(once) == len(shapes) > 1:
        questions += _order(rng, events, shapes)
    for noun, rows in (("shapes", shapes), ("digits", digits)):
        n = len({events[i].name for i in rows})
        questions.append(ClipQuestion("count", f"How many different {noun} appear?", str(n)))
    return questions + _exists(rng, events)


def part_of(event: Event, frames: int) -> str | None:
    """The third of the clip in which the event is seen; None when it reaches too far into another one, or might be."""
    begin, end = event.first / frames, event.last / frames
    fitting = [part for i, part in enumerate(PARTS) if i / 3 - _UNSURE <= begin and end <= (i + 1) / 3 + _UNSURE]
    return fitting[0] if len(fitting) == 1 else None


def _looks(events: tuple[Event, ...]) -> list[ClipQuestion]:
    """Colour by name and name by colour, once for what is seen twice."""
    questions, rows = [], {}
    for i, event in enumerate(events):
        rows.setdefault(event.name, []).append(i)
    for where in map(tuple, rows.values()):
        event = events[where[0]]
        if event.kind == "shape":
            kinds = ("color", "shape")
        else:
            kinds = ("needle",) * 2 if event.last - event.first <= NEEDLE else ("digit",) * 2
        questions.append(ClipQuestion(kinds[0], f"What color is the {event.name}?", event.color, where, where))
        questions.append(ClipQuestion(kinds[1], f"Which {event.kind} is {event.color}?", event.name, where, where))
    return questions


def _flashes(events: tuple[Event, ...], shapes: list[int], digits: list[int]) -> list[ClipQuestion]:
    """Which shape is seen together with a digit, where exactly one is all the time."""
    questions = []
    for i in digits:
        digit = events[i]
        with_it = [s for s in shapes if events[s].first < digit.last and digit.first < events[s].last]
        if len(with_it) != 1:
            continue
        (s,) = with_it
        if events[s].first > digit.first or events[s].last < digit.last:
            continue
        place = ((i,), (s,), (digit.first, digit.last))
        text = f"What color is the shape when the {digit.name} appears?"
        questions.append(ClipQuestion("when", text, events[s].color, *place))
        questions.append(
            ClipQuestion("when", f"Which shape is there when the {digit.name} appears?", events[s].name, *place)
        )
    return questions


def _order(rng: np.random.Generator, events: tuple[Event, ...], shapes: list[int]) -> list[ClipQuestion]:
    """Who comes first, last and next, and whether one comes before another."""
    names = [events[i].name for i in shapes]
    questions = [
        ClipQuestion("order", "Which shape appears first?", names[0], (), (shapes[0],)),
        ClipQuestion("order", "Which shape appears last?", names[-1], (), (shapes[-1],)),
    ]
    k = int(rng.integers(len(shapes) - 1))
    cue, evidence = (shapes[k],), (shapes[k + 1],)
    questions.append(ClipQuestion("order", f"Which shape appears after the {names[k]}?", names[k + 1], cue, evidence))
    one, other = sorted(int(i) for i in rng.permutation(len(shapes))[:2])
    both = (shapes[one], shapes[other])
    for a, b, answer in ((one, other, "yes"), (other, one, "no")):
        text = f"Does the {names[a]} appear before the {names[b]}?"
        questions.append(ClipQuestion("before", text, answer, both, both))
    return questions


def _exists(rng: np.random.Generator, events: tuple[Event, ...]) -> list[ClipQuestion]:
    """A question to be answered "yes" and one "no", whose colour and name may both be seen, but not together."""
    i = int(rng.integers(len(events)))
    thing = events[i]
    names, colors = sorted({event.name for event in events}), {event.color for event in events}
    color, name = not_there(rng, thing.color, thing.name, names, colors)
    return [
        ClipQuestion("exists", f"Does a {thing.color} {thing.name} appear?", "yes", (i,), (i,)),
        ClipQuestion("exists", f"Does a {color} {name} appear?", "no"),
    ]
