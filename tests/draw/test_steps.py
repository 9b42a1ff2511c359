"""What each step of a clip shows, against loops over single tokens and against cases spelt out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.draw.steps import clip_sources, frames_per_step, steps_of
from vtprune.kept import Kept


def clip_of(into: list[int | None], grid: tuple[int, int, int]) -> Kept:
    """A video whose token i stands in token ``into[i]`` (itself: kept), or is dropped (None)."""
    _, height, width = grid
    places = [(0, i // (height * width), i // width % height, i % width) for i in range(len(into))]
    rows = [i for i, j in enumerate(into) if i == j]
    index = [-1 if j is None else rows.index(j) for j in into]
    places = torch.tensor(places)
    return Kept("video", 0, torch.tensor(rows), places[rows], len(into), (grid,), torch.tensor(index), places)


def test_a_clip_by_hand():
    """Two steps of two by two: one kept, one merged beside it, one into a later step, one dropped; then the rest."""
    first, second = steps_of([clip_of([0, 0, 6, None, 0, None, 6, 6], (2, 2, 2))])
    assert first.kept.tolist() == [[True, False], [False, False]] and first.of == 4
    assert first.merged.tolist() == [[False, True], [True, False]] and first.lies.tolist() == [[0, 0], [1, 0]]
    assert first.group.tolist() == [[0, 0], [6, -1]]
    assert second.kept.tolist() == [[False, False], [True, False]]
    assert second.merged.tolist() == [[True, False], [False, True]] and second.lies.tolist() == [[-1, 0], [0, 0]]


@settings(max_examples=25)
@given(st.data())
def test_every_cell_shows_its_token(data):
    """Oracle: the fate of each token, looked up one by one."""
    grid = frames, height, width = tuple(data.draw(st.integers(1, 4)) for _ in range(3))
    n = frames * height * width
    kept = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
    fates = [i if i in kept else data.draw(st.sampled_from([None, *kept])) for i in range(n)]
    steps = steps_of([clip_of(fates, grid)])
    assert len(steps) == frames and all(step.of == height * width for step in steps)
    for i, fate in enumerate(fates):
        t, cell = i // (height * width), (i // width % height, i % width)
        assert steps[t].kept[cell] == (fate == i) and steps[t].merged[cell] == (fate not in (None, i))
        assert steps[t].group[cell] == (-1 if fate is None else fate)
        there = t if fate is None else fate // (height * width)
        assert steps[t].lies[cell] == (there > t) - (there < t)


def test_frames_that_are_images():
    """Three images of two cells: a token of each stands in the first image's, which only ``target`` can say."""
    sources = []
    for i, (rows, target) in enumerate([([0, 1], [0, 1]), ([], [0, -1]), ([5], [0, 5])]):
        places = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]])
        rows, target = torch.tensor(rows, dtype=torch.int64), torch.tensor(target)
        kept = Kept("image", i, rows, places[rows - 2 * i], 2, ((1, 1, 2),), places=places, target=target)
        sources.append(kept)
    first, second, third = steps_of(clip_sources(sources))
    assert first.kept.all() and not first.merged.any()
    assert second.merged.tolist() == [[True, False]] and second.lies.tolist() == [[-1, 0]]
    assert third.kept.tolist() == [[False, True]] and third.merged.tolist() == [[True, False]]
    assert third.group.tolist() == [[0, 5]] and third.lies.tolist() == [[-1, 0]]
    # without the first image its tokens come before all that is drawn
    assert [step.lies[0, 0] for step in steps_of(sources[1:])] == [-1, -1]


def test_tokens_without_a_place_are_nowhere():
    """A newline after two cells, kept or standing for one of them."""
    places = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [-1, -1, -1, -1]])
    rows, into = torch.tensor([0, 2]), torch.tensor([0, 1, 1])
    (step,) = steps_of([Kept("video", 0, rows, places[rows], 3, ((1, 1, 2),), into, places)])
    assert step.of == 2 and step.kept.tolist() == [[True, False]] and step.merged.tolist() == [[False, True]]
    assert step.lies.tolist() == [[0, 0]]


def test_cells_that_were_not_offered_count_as_dropped():
    places = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 0]])
    first, second = steps_of(
        [Kept("video", 0, torch.tensor([1]), places[1:], 2, ((2, 1, 2),), torch.tensor([-1, 0]), places)]
    )
    assert (first.of, second.of) == (1, 1) and not first.kept.any() and second.kept.tolist() == [[True, False]]
    assert first.group.tolist() == [[-1, -1]]


def test_a_record_that_knows_only_what_was_kept():
    (step,) = steps_of([Kept("video", 0, torch.tensor([3]), torch.tensor([[0, 0, 1, 1]]), 4, ((1, 2, 2),))])
    assert step.of == 4 and step.kept.tolist() == [[False, False], [False, True]] and not step.merged.any()


@pytest.mark.parametrize(
    ("frames", "steps", "each"), [(8, 8, 1), (16, 8, 2), (15, 8, 2), (1, 1, 1), (2, 1, 2), (32, 8, 4)]
)
def test_frames_of_a_step(frames, steps, each):
    assert frames_per_step(frames, [clip_of([0] * steps, (steps, 1, 1))]) == each


def test_what_is_no_clip_says_why():
    one = clip_of([0, 0], (2, 1, 1))
    image = Kept("image", 0, torch.tensor([0]), torch.zeros(1, 4, dtype=torch.int64), 1, ((1, 1, 1),))
    unknown = Kept("video", 0, torch.arange(3), torch.full((3, 4), -1), 7, ())
    views = Kept("image", 0, torch.arange(1), torch.zeros(1, 4), 2, ((1, 1, 1), (1, 1, 1)))
    for kept, reason in (
        ([], "kept is empty"),
        (unknown, "places of these 7 visual tokens are unknown.*vtprune/families"),
        (views, "has 2: .*vtprune.draw.overlay"),
        ([one, one], "tokens of 2 sources"),
        ([one, image], "tokens of 2 sources"),
    ):
        with pytest.raises(ValueError, match=reason):
            clip_sources(kept)
    for frames, sources, reason in (
        (5, [clip_of([0] * 4, (4, 1, 1))], "for this grid 4, or in pairs 7 or 8; got 5. Give all"),
        (1, [one], "for this grid 2, or in pairs 3 or 4; got 1"),
        (4, [image, image], "for this grid 2; got 4"),
    ):
        with pytest.raises(ValueError, match=reason):
            frames_per_step(frames, sources)
    assert np.array_equal(steps_of(clip_sources([one]))[0].kept, [[True]])
