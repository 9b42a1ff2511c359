"""Single frames of generated clips, and whether something is seen in them: what a scorer of frames is asked.

A still is one frame twice, as processors of the Qwen family show a picture to a tower that takes two frames at a time.
"""

import dataclasses

import numpy as np

from vtprune.embedded.clip_questions import ClipQuestion, Event
from vtprune.embedded.clips import FRAMES, SLICE, Clip, make_clip
from vtprune.embedded.drawing import COLORS, SHAPES

DIGITS = tuple(str(digit) for digit in range(10))
NOUNS = {"shape": SHAPES, "digit": DIGITS}
_STREAM = 65


def still_question(thing: str) -> str:
    """Whether a thing is seen: "red circle", "circle", "red shape", "shape", "blue 7", "7", "digit", ..."""
    return f"Does a {thing} appear?"


def make_still(seed: int, split: str = "train") -> Clip:
    """One frame, twice, of the clip number ``seed``, and as many questions whose answer is "no" as "yes".

    Where nothing is seen, every answer is "no".
    """
    clip = make_clip(seed, split, FRAMES)
    rng = np.random.Generator(np.random.PCG64([seed, _STREAM]))
    seen = [tuple(e for e in clip.events if e.first <= frame < e.last) for frame in range(FRAMES)]
    # frames with a digit are few, and so are empty ones: each number of things is as likely
    numbers = sorted({len(events) for events in seen})
    number = numbers[rng.integers(len(numbers))]
    frame = int(rng.choice([i for i, events in enumerate(seen) if len(events) == number]))
    events = tuple(_held(event, frame) for event in seen[frame])
    return Clip(clip.frames[[frame] * SLICE], events, tuple(_ask(rng, events)))


def _held(event: Event, frame: int) -> Event:
    """The event as it is in one frame, held for a slice."""
    place = event.path[frame - event.first]
    return dataclasses.replace(event, first=0, last=SLICE, direction="nowhere", path=(place,) * SLICE)


def _ask(rng: np.random.Generator, events: tuple[Event, ...]) -> list[ClipQuestion]:
    there = {thing: row for row, event in enumerate(events) for thing in _called(event)}
    questions = [ClipQuestion("exists", still_question(thing), "yes", (row,), (row,)) for thing, row in there.items()]
    absent = list(dict.fromkeys(_confused(rng, events) + [_anything(rng) for _ in range(24)]))
    absent = [thing for thing in absent if thing not in there][: len(questions) or 4]
    return questions + [ClipQuestion("exists", still_question(thing), "no") for thing in absent]


def _called(event: Event) -> tuple[str, ...]:
    """The names by which a thing can be asked for."""
    return f"{event.color} {event.name}", event.name, f"{event.color} {event.kind}", event.kind


def _confused(rng: np.random.Generator, events: tuple[Event, ...]) -> list[str]:
    """Things that share a colour or a name with what is seen, and kinds of things, in random order."""
    things = [noun for noun in NOUNS]
    for event in events:
        other_color, other_name = _one(rng, tuple(COLORS)), _one(rng, NOUNS[event.kind])
        other_kind = "digit" if event.kind == "shape" else "shape"
        things += [f"{other_color} {event.name}", f"{event.color} {other_name}", f"{event.color} {other_kind}"]
        things += [f"{other_color} {event.kind}", other_name]
    return [things[i] for i in rng.permutation(len(things))]


def _anything(rng: np.random.Generator) -> str:
    color, kind = _one(rng, tuple(COLORS)), _one(rng, tuple(NOUNS))
    name = _one(rng, NOUNS[kind])
    return (f"{color} {name}", name, f"{color} {kind}", kind)[rng.integers(4)]


def _one(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[rng.integers(len(choices))]
