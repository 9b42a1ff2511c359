"""Frame sampling, against the numbers of the publication and a literal rule."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vtprune.quota.sample import frame_count, frame_indices


def test_the_probes():
    """3000 frames at 30 fps are 100 s: 97 of them; 100000 at 29.97 are 3337 s: 155."""
    assert len(frame_indices(3000, 30)) == 97
    assert len(frame_indices(100_000, 29.97)) == 155
    assert (frame_count(0), frame_count(3599), frame_count(3600)) == (96, 159, 160)
    assert frame_count(1800, base=10, per_hour=4) == 12


def test_a_short_video_gives_one_frame_a_second():
    assert frame_indices(300, 30) == list(range(0, 300, 30))
    assert frame_indices(300, 29.97) == list(range(0, 300, 30))
    assert frame_indices(50, 24.4) == [0, 24, 48]
    assert frame_indices(1, 30) == [0]


def test_slow_videos_give_every_frame():
    """A stride of round(fps) would be 0 below half a frame a second."""
    assert frame_indices(5, 0.2) == [0, 1, 2, 3, 4]


def test_forced_sampling_takes_the_full_number():
    forced = frame_indices(300, 30, forced=True)
    assert len(forced) == 96 and forced[0] == 0 and forced[-1] == 299
    few = frame_indices(5, 30, forced=True)
    assert len(few) == 96 and set(few) == set(range(5))


@given(st.integers(1, 200_000), st.floats(0.1, 240), st.booleans())
def test_indices_are_ascending_and_follow_the_rule(n, fps, forced):
    """Oracle: the rule in torch and plain Python; steps computed elsewhere may differ where a whole number is cut."""
    indices = frame_indices(n, fps, forced=forced)
    assert indices == sorted(indices) and 0 <= indices[0] and indices[-1] < n
    most = 96 + int(n / fps / 3600 * 64)
    each = math.ceil(n / max(1, round(fps)))
    if forced or each > most:
        expected = torch.linspace(0, n - 1, most, dtype=torch.float64)
        assert len(indices) == most
        assert all(0 <= float(e) - i < 1 + 1e-6 or abs(float(e) - i) < 1e-6 for e, i in zip(expected, indices))
    else:
        assert indices == [i for i in range(n) if i % max(1, round(fps)) == 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 30), "n is .*got 0"),
        ((True, 30), "n is .*True"),
        ((2.5, 30), r"n is .*2\.5"),
        ((10, 0), "fps .*got 0"),
        ((10, math.nan), "fps .*nan"),
        ((10, -1), "fps .*-1"),
    ],
)
def test_what_is_no_video_is_refused_by_value(arguments, words):
    with pytest.raises(ValueError, match=words):
        frame_indices(*arguments)


def test_a_negative_duration_is_refused():
    with pytest.raises(ValueError, match="-1"):
        frame_count(-1)
