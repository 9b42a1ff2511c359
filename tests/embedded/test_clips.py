"""Clips: what is drawn, asked and answered, against rules written down a second time."""

import hashlib
import re

import numpy as np
import pytest

from vtprune.embedded.clip_questions import KINDS, PARTS, part_of
from vtprune.embedded.clips import LONG, SIDE, SLICE, make_clip
from vtprune.embedded.digit_font import glyph
from vtprune.embedded.drawing import COLORS
from vtprune.embedded.scenes import SPLITS


@pytest.fixture(scope="module")
def clips():
    ordinary = [make_clip(seed, split) for seed in range(60) for split in SPLITS]
    return (
        ordinary
        + [make_clip(seed, "test", LONG) for seed in range(12)]
        + [make_clip(seed, "train", 8) for seed in range(12)]
    )


def seen_when(clip, word):
    """The frames in which something of that name or colour is seen."""
    return [
        f for f in range(len(clip.frames)) for e in clip.events if e.first <= f < e.last and word in (e.name, e.color)
    ]


def shapes_by_frame(clip):
    """For each frame the shapes that are seen in it."""
    shapes = [e for e in clip.events if e.kind == "shape"]
    return [[e for e in shapes if e.first <= f < e.last] for f in range(len(clip.frames))]


def recomputed(text, clip):
    """The answer by going through the clip frame by frame."""
    words = re.findall(r"[a-z]+|\d", text.lower())
    line = shapes_by_frame(clip)
    order = list(dict.fromkeys(e.name for frame in line for e in frame))
    if words[:3] == ["how", "many", "different"]:
        return str(len({e.name for e in clip.events if e.kind == words[3].rstrip("s")}))
    if words[0] == "does" and "before" in words:
        return "yes" if min(seen_when(clip, words[2])) < min(seen_when(clip, words[-1])) else "no"
    if words[0] == "does":
        return "yes" if any((e.color, e.name) == (words[2], words[3]) for e in clip.events) else "no"
    if words[0] == "in":
        frames = np.array(seen_when(clip, words[-2])) + 0.5
        (third,) = {int(3 * frames.mean() / len(clip.frames))}
        return PARTS[third]
    if words[1] == "way":
        (event,) = [e for e in clip.events if e.name == words[-2]]
        (x, y), (u, v) = event.path[0], event.path[-1]
        return {(0, 0): "nowhere", (1, 0): "right", (-1, 0): "left", (0, 1): "down", (0, -1): "up"}[
            (int(np.sign(u - x)), int(np.sign(v - y)))
        ]
    if "when" in words:
        frames = seen_when(clip, words[-2])
        (name,), (color,) = ({getattr(e, what) for f in frames for e in line[f]} for what in ("name", "color"))
        assert all(len(line[f]) == 1 for f in frames)
        return color if words[1] == "color" else name
    if words[-2:] == ["appears", "first"]:
        return order[0]
    if words[-2:] == ["appears", "last"]:
        return order[-1]
    if "after" in words:
        return order[order.index(words[-1]) + 1]
    if words[0] == "what":
        (color,) = {e.color for e in clip.events if e.name == words[-1]}
        return color
    (name,) = {e.name for e in clip.events if e.kind == words[1] and e.color == words[-1]}
    return name


def test_answers_follow_from_the_events(clips):
    for clip in clips:
        for question in clip.questions:
            assert question.answer == recomputed(question.text, clip), (question, clip.events)
            assert len(question.answer.split()) == 1


def test_every_kind_is_asked_and_no_balances_yes(clips):
    asked = [question for clip in clips for question in clip.questions]
    assert {question.kind for question in asked} == set(KINDS)
    for kind in ("exists", "before"):
        answers = [question.answer for question in asked if question.kind == kind]
        assert answers.count("yes") == answers.count("no") == len(answers) / 2


def test_a_needle_is_seen_in_two_frames_and_a_digit_in_more(clips):
    """Oracle: the frames in which the event whose name or colour is asked for is seen."""
    lengths = {"needle": set(), "digit": set()}
    for clip in clips:
        for question in clip.questions:
            if question.kind in lengths:
                words = re.findall(r"[a-z]+|\d", question.text.lower())
                lengths[question.kind].add(len(seen_when(clip, words[-1])))
    assert lengths["needle"] == {2} and lengths["digit"] == {4, 6}


def test_cue_and_evidence_are_what_is_named_and_what_answers(clips):
    for clip in clips:
        for question in clip.questions:
            words = set(re.findall(r"[a-z]+|\d", question.text.lower()))
            for row in question.cue:
                assert words & {clip.events[row].name, clip.events[row].color}, question
            if question.evidence and question.kind in ("color", "shape", "digit", "needle", "when", "order", "move"):
                for row in question.evidence:
                    event = clip.events[row]
                    assert question.answer in (event.name, event.color, event.direction), question
                    assert event.first < question.during[1] and question.during[0] < event.last


def test_the_frames_show_the_events_where_and_when_they_are_said_to_be(clips):
    """Oracle: the pixels. In its box, most pixels that have an object colour at all have this event's colour."""
    names = list(COLORS)
    palette = np.array([COLORS[name] for name in names], float)
    shades = palette[None] * np.linspace(0.85, 1, 7)[:, None, None]
    for clip in clips[:40]:
        for event in clip.events:
            for frame in (event.first, event.last - 1):
                left, top, right, bottom = event.box(frame)
                inside = clip.frames[frame, top:bottom, left:right].reshape(-1, 3).astype(float)
                counts = (np.abs(inside[:, None, None] - shades).max(-1).min(1) < 8).sum(0)
                assert counts.argmax() == names.index(event.color) and counts.max() >= 40, (event, counts)


def test_nothing_else_changes_but_by_a_flicker(clips):
    """Oracle: pixels outside all boxes, from frame to frame."""
    for clip in clips[:40]:
        free = np.ones((SIDE, SIDE), bool)
        for event in clip.events:
            for frame in range(event.first, event.last):
                left, top, right, bottom = event.box(frame)
                free[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = False
        quiet = clip.frames[:, free].astype(int)
        assert free.any() and np.ptp(quiet, axis=0).max() <= 7


def test_boxes_lie_in_the_frame_and_apart_and_one_shape_is_seen_at_a_time(clips):
    for clip in clips:
        assert max(map(len, shapes_by_frame(clip))) <= 1
        for frame in range(len(clip.frames)):
            covered = np.zeros((SIDE, SIDE), int)
            for event in clip.events:
                if event.first <= frame < event.last:
                    left, top, right, bottom = event.box(frame)
                    assert 1 <= left < right < SIDE and 1 <= top < bottom < SIDE
                    covered[top:bottom, left:right] += 1
            assert covered.max() <= 1
        by_name = {(e.name, e.color) for e in clip.events}
        assert len(by_name) == len({name for name, _ in by_name}) == len({color for _, color in by_name})


def test_events_begin_and_end_with_a_slice_and_moves_have_one_step(clips):
    for clip in clips:
        for event in clip.events:
            assert event.first % SLICE == event.last % SLICE == 0 and len(event.path) == event.last - event.first
            steps = {s for s in map(tuple, np.diff(event.path, axis=0).tolist()) if any(s)}
            assert len(steps) == (event.direction != "nowhere"), event


def test_most_of_a_long_clip_repeats():
    """Oracle: slices whose boxes are those of the slice before."""
    repeated = []
    for seed in range(40):
        clip = make_clip(seed, "test", LONG)
        states = [
            tuple((e.name, e.path[f - e.first]) for e in clip.events if e.first <= f < e.last)
            for f in range(0, LONG, SLICE)
        ]
        repeated += [one == other for one, other in zip(states, states[1:])]
    assert np.mean(repeated) > 0.5


def test_the_part_is_said_only_where_it_is_clear(clips):
    for clip in clips:
        for event in clip.events:
            thirds = {int(3 * (f + 0.5) / len(clip.frames)) for f in range(event.first, event.last)}
            if len(thirds) == 1:
                assert part_of(event, len(clip.frames)) in (None, PARTS[thirds.pop()])
            if len(thirds) == 3:
                assert part_of(event, len(clip.frames)) is None


def test_same_seed_same_clip_on_every_machine():
    """Oracle: a hash taken once."""
    digest = hashlib.sha256()
    for seed in range(20):
        for split in SPLITS:
            clip = make_clip(seed, split)
            digest.update(clip.frames.tobytes() + repr((clip.events, clip.questions)).encode())
    assert digest.hexdigest() == "8590a8fc8bbfcdd24c512f1df5164ca7d964f443a5c0a636d0f04e0c4ca98b88"


@pytest.mark.parametrize("frames", [7, 15, 6, 0])
def test_odd_or_too_few_frames_are_refused(frames):
    with pytest.raises(ValueError, match=f"even number of frames, 8 or more; got {frames}"):
        make_clip(0, frames=frames)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="unknown split 'validation'; known: train, test"):
        make_clip(0, "validation")


def test_glyphs_are_all_drawn_differently():
    masks = [glyph(str(digit)) for digit in range(10)]
    for i, one in enumerate(masks):
        assert 0.1 < one.mean() < 0.4
        assert all(np.abs(one - other).sum() >= 27 for other in masks[:i])
