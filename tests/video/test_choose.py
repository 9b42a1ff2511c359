"""Which frames are taken. No file and no decoder: lists of times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtprune.video.choose import Wish, choose
from vtprune.video.timeline import Timeline


def constant(count: int, rate: float = 30.0) -> Timeline:
    return Timeline(np.arange(count) / rate, count / rate)


def rows(timeline: Timeline, **wish) -> list[int]:
    return choose(Wish(**wish), timeline)[0].tolist()


def last_by(timeline: Timeline, time: float) -> int:
    """The frame shown at a time, looked for one by one; a millisecond of rounding counts as in time."""
    return max(i for i, begins in enumerate(timeline.seconds) if begins <= time + 1e-3)


uneven = st.lists(st.integers(10, 3000), min_size=1, max_size=40).map(
    lambda gaps: Timeline(np.cumsum([0, *gaps[:-1]]) / 1000, sum(gaps) / 1000)
)


@given(st.integers(1, 500), st.integers(1, 64), st.sampled_from([24, 25, 30, 30000 / 1001, 60]))
def test_linspace_is_the_published_rule(count, n, rate):
    """Oracle: whole-number arithmetic. Frame i of n is floor(i (N - 1) / (n - 1)), as in linspace(0, N - 1, n)."""
    expected = list(range(count)) if n >= count else [i * (count - 1) // max(n - 1, 1) for i in range(n)]
    assert rows(constant(count, rate), n=n) == expected


@given(st.integers(1, 300), st.integers(1, 64))
def test_centres_and_starts_of_equal_parts(count, n):
    """Oracle: whole-number arithmetic."""
    if n >= count:
        return
    assert rows(constant(count), n=n, spread="centres") == [(2 * i + 1) * count // (2 * n) for i in range(n)]
    assert rows(constant(count), n=n, spread="starts") == [i * count // n for i in range(n)]


@given(uneven, st.integers(1, 50), st.sampled_from(["linspace", "centres", "starts"]))
def test_n_frames_are_n_different_frames(timeline, n, spread):
    taken = rows(timeline, n=n, spread=spread)
    assert taken == sorted(set(taken)) and len(taken) == min(n, len(timeline.seconds))
    assert 0 <= taken[0] and taken[-1] < len(timeline.seconds)


def test_n_frames_of_a_variable_rate_are_even_in_time_not_in_number():
    """Ten frames in the first second, then one a second: by number half of the frames would be of the first second."""
    seconds = np.concatenate([np.arange(10) / 10, np.arange(1, 11)])
    timeline = Timeline(seconds, 11.0)
    assert seconds[rows(timeline, n=6)].tolist() == [0, 2, 4, 6, 8, 10]


def test_a_long_still_frame_is_taken_once():
    """The first frame is shown for ten seconds; five frames are five frames all the same."""
    timeline = Timeline(np.array([0, 10, 10.1, 10.2, 10.3, 10.4, 10.5]), 10.6)
    assert rows(timeline, n=5) == [0, 1, 2, 3, 6]


def test_more_frames_than_there_are():
    taken, note = choose(Wish(n=9), constant(4))
    assert taken.tolist() == [0, 1, 2, 3] and "9 frames were asked for; the clip has 4" in note
    assert choose(Wish(n=4), constant(4))[1] == ""


@given(uneven, st.sampled_from([0.1, 0.5, 1, 2, 3, 7.5, 30]))
def test_fps_takes_what_is_shown_at_its_times(timeline, fps):
    """Oracle: each time looked up one by one, times that a millisecond would move to another frame left out."""
    times = np.arange(0, timeline.duration, 1 / fps)
    near = np.abs(times[:, None] - np.append(timeline.seconds, timeline.duration)[None]).min(1) < 2e-3
    taken = rows(timeline, fps=fps, n_max=10**6)
    assert {last_by(timeline, t) for t in times[~near]} <= set(taken)
    assert set(taken) <= {last_by(timeline, t + d) for t in times for d in (-2e-3, 0, 2e-3) if t + d >= 0}
    assert taken == sorted(set(taken))


@pytest.mark.parametrize(("fps", "expected"), [(1, [0, 30, 60]), (2, [0, 15, 30, 45, 60, 75]), (30, list(range(90)))])
def test_fps_of_a_constant_rate(fps, expected):
    assert rows(constant(90), fps=fps) == expected


def test_fps_has_a_largest_number_of_frames():
    taken, note = choose(Wish(fps=10, n_max=5), constant(90))
    assert taken.tolist() == [0, 22, 44, 66, 89] and "n_max=5" in note


def test_fps_above_the_rate_takes_every_frame_once():
    taken, note = choose(Wish(fps=100), constant(30))
    assert taken.tolist() == list(range(30)) and "each is here once" in note


def test_a_duration_that_nobody_can_believe_costs_nothing():
    """One frame is said to be shown for three years; no list of its times is made."""
    timeline = Timeline(np.array([0.0, 1.0, 2.0]), 1e8)
    assert rows(timeline, fps=1000.0) == [0, 1, 2]


@given(uneven, st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_timestamps_take_the_frame_shown_then_in_the_order_asked(timeline, shares):
    """Oracle: each time looked up one by one; asked for in any order and twice, given in that order and twice."""
    times = [share * timeline.duration for share in shares]
    assert rows(timeline, timestamps=times) == [last_by(timeline, time) for time in times]


def test_times_that_a_container_rounded():
    """Matroska keeps milliseconds: frame 2 of 30 a second begins at 0.067 s, after 2 / 30 s."""
    timeline = Timeline(np.round(np.arange(90) / 30, 3), 3.0)
    assert rows(timeline, timestamps=[i / 30 for i in range(90)]) == list(range(90))


@given(st.integers(2, 300), st.data(), st.integers(1, 40), st.sampled_from(["linspace", "centres", "starts"]))
def test_a_part_of_a_constant_rate_is_a_clip_of_its_frames(count, data, n, spread):
    """Oracle: the clip cut to the frames from one to another, chosen from by the rule for whole clips."""
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count - 1))
    # from the middle of the first one's time to the middle of the last one's
    inside = {"start": (first + 0.4) / 30, "end": (last + 0.6) / 30}
    cut = rows(constant(last - first + 1), n=n, spread=spread)
    assert rows(constant(count), n=n, spread=spread, **inside) == [first + row for row in cut]


@given(uneven, st.floats(0, 0.95), st.floats(0.01, 1), st.integers(1, 20))
def test_a_part_holds_only_frames_shown_in_it(timeline, share, more, n):
    """Oracle: each frame's time of showing against the part, one by one; ends that rounding could move are left out."""
    start = share * timeline.duration
    end = min(start + more * timeline.duration, timeline.duration)
    begins = timeline.seconds
    ends = np.append(begins[1:], timeline.duration)
    if min(np.abs(begins - time).min() for time in (start, end)) < 2e-3 or end - start < 2e-3:
        return
    shown = [i for i in range(len(begins)) if begins[i] <= end and ends[i] > start]
    for wish in ({"n": n}, {"n": n, "spread": "centres"}, {"fps": n, "n_max": 10**6}):
        taken = rows(timeline, start=start, end=end, **wish)
        assert set(taken) <= set(shown) and taken == sorted(set(taken))
        if "n" in wish:
            assert len(taken) == min(n, len(shown))
    assert rows(timeline, n=10**6, start=start, end=end) == shown
    # a rate that no gap between frames is shorter than
    assert rows(timeline, fps=1000, n_max=10**6, start=start, end=end) == shown


def test_a_part_of_worked_examples():
    """Ten frames a second for three seconds: frame i is shown from i / 10 on, and both ends of the part count."""
    clip = constant(30, 10)
    assert rows(clip, n=3, start=1, end=2) == [10, 15, 20]
    assert rows(clip, n=2, start=2.55) == [25, 29]
    assert rows(clip, n=2, end=0.55) == [0, 5]
    assert rows(clip, fps=2, start=0.25, end=2) == [2, 7, 12, 17]  # at 0.25, 0.75, 1.25 and 1.75 s
    # one frame fills the part, shown since long before
    still = Timeline(np.array([0.0, 10.0]), 11.0)
    for wish in ({"n": 4}, {"fps": 1}, {"fps": 0.1}):
        assert rows(still, start=7, end=7.0001, **wish) == [0]
    # a slide that is shown from 0 s on, and half of it counts
    slides = Timeline(np.array([0, 10, 10.5, 11, 11.5, 12]), 12.5)
    assert rows(slides, n=3, start=8, end=12) == [0, 1, 5]


def test_a_part_that_the_clip_does_not_fill():
    clip = constant(30, 10)
    assert choose(Wish(n=2, start=1, end=3), clip)[1] == ""
    taken, note = choose(Wish(n=2, start=2, end=9.5), clip)
    assert taken.tolist() == [20, 29] and note == "the clip ends at 3.000 s, before end=9.5 s"
    taken, note = choose(Wish(n=9, start=1, end=1.25), clip)
    assert taken.tolist() == [10, 11, 12] and "from 1 s to 1.25 s: 9 frames were asked for; the clip has 3" in note
    for start in (3, 3.5, 100):
        with pytest.raises(ValueError, match=rf"runs from 0 to 3\.000 s, and nothing is shown from start={start} s on"):
            choose(Wish(n=2, start=start), clip)


@pytest.mark.parametrize("time", [-0.5, 3.2, 1e9])
def test_times_outside_of_the_clip_are_refused(time):
    with pytest.raises(ValueError, match=r"runs from 0 to 3\.000 s; timestamps asks for"):
        rows(constant(90), timestamps=[1.0, time])


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "give one of n .* got none of them"),
        ({"n": 4, "fps": 1.0}, "got n and fps together"),
        ({"n": 0}, "n is a number of frames, 1 or more; got 0"),
        ({"n": 2.5}, "got 2.5"),
        ({"n": True}, "got True"),
        ({"fps": 0}, "above 0; got 0"),
        ({"fps": float("nan")}, "got nan"),
        ({"fps": 1, "n_max": 0}, "n_max is a number of frames"),
        ({"n": 4, "spread": "random"}, "spread is one of linspace, centres, starts; got 'random'"),
        ({"timestamps": []}, "one or more seconds"),
        ({"timestamps": [1, float("inf")]}, "one or more seconds"),
        ({"n": 4, "start": -1}, "start is in seconds from the clip's first frame, 0 or more; got -1"),
        ({"n": 4, "end": float("nan")}, "end is in seconds .* got nan"),
        ({"n": 4, "start": 2, "end": 2}, "start is before end, in seconds; got start=2 and end=2"),
        ({"n": 4, "start": 5, "end": 2}, "got start=5 and end=2, with nothing between"),
        ({"fps": 4, "end": 0}, "got start=None and end=0"),
        ({"timestamps": [1], "start": 0.5}, "timestamps say themselves which frames count"),
    ],
)
def test_wishes_that_make_no_sense(wish, message):
    with pytest.raises(ValueError, match=message):
        Wish(**wish)
