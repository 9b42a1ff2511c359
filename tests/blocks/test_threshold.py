"""The threshold that leaves so many, against thresholds tried one by one."""

import pytest

from vtprune.blocks.threshold import fit_threshold


class Steps:
    """Leaves as many things as there are steps at or below a threshold, and one."""

    def __init__(self, steps):
        self.steps, self.asked = steps, []

    def __call__(self, threshold):
        self.asked.append(threshold)
        return range(1 + sum(step <= threshold for step in self.steps))


FINE = [i / 1000 for i in range(-900, 900)]
COARSE = [-0.5, 0.0, 0.0, 0.0, 0.25, 0.9]


@pytest.mark.parametrize(("steps", "wanted"), [(FINE, 1), (FINE, 300), (FINE, 1790), (COARSE, 3), (COARSE, 4)])
def test_as_many_as_were_asked_for_or_the_most_below(steps, wanted):
    """Oracle: all counts that there are; less than 1 % is missing, or what several steps at once leave out."""
    attempt = Steps(steps)
    found = len(fit_threshold(attempt, wanted, -1.0, 1.0))
    best = max(n for n in (len(attempt(t / 1024)) for t in range(-1024, 1025)) if n <= wanted)
    assert best - wanted // 100 <= found <= best


def test_the_ends_are_what_they_leave():
    """Oracle: by hand. More than asked for at the low end; fewer at the high end, which comes last."""
    assert len(fit_threshold(lambda t: range(9), 5, -1.0, 1.0)) == 9
    attempt = Steps(COARSE)
    assert len(fit_threshold(attempt, 50, -1.0, 1.0)) == 7 and attempt.asked[-1] == 1.0
    attempt = Steps(FINE)
    assert len(fit_threshold(attempt, 900, -1.0, 1.0)) <= 900 and 1.0 not in attempt.asked


def test_the_high_end_is_preferred_where_it_leaves_no_more_than_asked_for():
    """Oracle: by hand: 99 of 100 are near enough to stop, but 100 are to be had."""
    steps = [i / 100 for i in range(98)] + [0.99999]
    assert len(fit_threshold(Steps(steps), 100, -1.0, 1.0)) == 100
