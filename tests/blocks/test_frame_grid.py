"""Frames of a segment and their scores, against coordinates and sums written out."""

import math

import numpy as np
import pytest
import torch

from tests.policies.fabricate import Source
from vtprune.blocks.frame_grid import check_whole, frame_grids, given_scores, scores_by_slice, split_scores
from vtprune.tokens import Segment


def frames_of(*views, first=0, coords=None, kind="video"):
    coords = Source(tuple(views)).coords() if coords is None else coords
    before = torch.full((first, 4), -1)
    segment = Segment(slice(first, first + len(coords)), tuple(views), kind)
    return frame_grids(segment, torch.cat([before, coords]))


def told(frames):
    return [[(grid.rows.tolist(), grid.height, grid.width) for grid in frame] for frame in frames]


def test_a_video_has_a_grid_for_every_frame():
    assert told(frames_of((2, 1, 3), first=5)) == [[([5, 6, 7], 1, 3)], [([8, 9, 10], 1, 3)]]


def test_an_image_with_two_views_is_one_frame():
    assert told(frames_of((1, 1, 2), (1, 2, 2))) == [[([0, 1], 1, 2), ([2, 3, 4, 5], 2, 2)]]


def test_rows_are_in_raster_order_however_the_prompt_tells_them():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    coords = Source(((2, 2, 3),)).coords()[order]
    rows = torch.cat([grid.rows for frame in frames_of((2, 2, 3), coords=coords) for grid in frame])
    assert order[rows].tolist() == list(range(12))


def test_newlines_are_in_no_frame():
    coords = torch.cat([Source(((1, 2, 2),)).coords(), torch.full((1, 4), -1)])
    assert told(frames_of((1, 2, 2), coords=coords)) == [[([0, 1, 2, 3], 2, 2)]]


def test_tokens_without_a_whole_grid_are_a_line():
    coords = Source(((2, 2, 2),)).coords()
    line = [[(list(range(7)), 1, 7)]]
    assert told(frames_of(coords=torch.full((7, 4), -1))) == line, "no grid is known"
    assert told(frame_grids(Segment(slice(0, 7), ((2, 2, 2),)), None)) == line, "no places are known"
    other = torch.cat([coords[:4], torch.tensor([[1, 0, 0, 0]])])
    assert told(frames_of((1, 2, 2), coords=other)) == [[(list(range(5)), 1, 5)]], "a place outside of every view"


def test_a_clip_of_which_tokens_were_left_out_keeps_its_frames():
    """By hand: five of eight tokens of one frame, one of the next, none of the third, all of the last."""
    coords = Source(((4, 2, 4),)).coords()[[7, 0, 3, 4, 5, 9, *range(24, 32)]]
    frames = frames_of((4, 2, 4), first=3, coords=coords)
    assert told(frames) == [[([4, 5, 6, 7, 3], 1, 5)], [([8], 1, 1)], [(list(range(9, 17)), 2, 4)]]
    with pytest.raises(NotImplementedError, match="3 frames in this prompt 2 lack tokens.*use_token_compression=False"):
        check_whole([frames])
    check_whole([frames_of((2, 1, 3)), frames_of(coords=torch.full((7, 4), -1))])
    twice = torch.cat([coords, coords[:1]])
    assert told(frames_of((4, 2, 4), coords=twice)) == [[(list(range(15)), 1, 15)]], "two tokens at one place"


def test_two_frames_of_a_slice_are_averaged():
    assert scores_by_slice(torch.tensor([1.0, 2, 3]), 3).tolist() == [1, 2, 3]
    assert scores_by_slice(torch.tensor([1.0, 2, 3, 6]), 2).tolist() == [1.5, 4.5]
    assert scores_by_slice(torch.tensor([1.0, 2, 3]), 2).tolist() == [1.5, 3]


@pytest.mark.parametrize(("scores", "slices"), [(4, 3), (3, 4), (9, 4), (1, 2), (3, 1)])
def test_other_numbers_of_scores_are_refused_by_both_numbers(scores, slices):
    with pytest.raises(ValueError, match=rf"\b{scores} scores .*\b{slices} frames"):
        scores_by_slice(torch.ones(scores), slices)


@pytest.mark.parametrize(
    "given",
    [[0.5, 1, 0], (0.5, 1, 0), torch.tensor([0.5, 1, 0]), torch.tensor([0.5, 1, 0]).bfloat16(), np.array([0.5, 1, 0])],
)
def test_one_list_of_scores(given):
    scores = given_scores(given)
    assert scores.dtype == torch.float64 and scores.tolist() == [0.5, 1, 0]
    assert given_scores(scores) is scores or torch.equal(given_scores(scores), scores)


@pytest.mark.parametrize(
    "given", [[[1, 2], [3.0]], (torch.ones(2), [4]), [np.ones(3), torch.zeros(1)], torch.ones(2, 3), np.ones((2, 3))]
)
def test_a_list_for_every_clip(given):
    scores = given_scores(given)
    assert isinstance(scores, tuple)
    assert [s.tolist() for s in scores] == [list(map(float, s)) for s in given]


@pytest.mark.parametrize(
    "given", [[], [[]], [0.5, -1], [0.5, math.nan], [math.inf], "abc", 3, {0: 1}, [None], [[1], 2]]
)
def test_what_is_no_score_is_refused(given):
    with pytest.raises(ValueError, match="frame_scores are numbers of 0 or more, one for each frame"):
        given_scores(given)


def test_scores_keep_their_precision():
    assert given_scores([0.1]).tolist() == [0.1] and given_scores(np.array([0.1])).tolist() == [0.1]


def test_the_wrong_score_is_named():
    with pytest.raises(ValueError, match=r"frame 2 is -0\.25"):
        given_scores([0.5, 0.5, -0.25])


def test_scores_of_several_clips():
    whole = torch.arange(5.0)
    assert [s.tolist() for s in split_scores(whole, [2, 3])] == [[0, 1], [2, 3, 4]]
    assert [s.tolist() for s in split_scores((whole[:2], whole), [1, 5])] == [[0.5], [0, 1, 2, 3, 4]]
    assert [s.tolist() for s in split_scores(whole, [3])] == [[0.5, 2.5, 4]]


@pytest.mark.parametrize(
    ("given", "counts", "words"),
    [
        (torch.ones(4), [2, 3], "4 scores and the 2 clips of this prompt have 5 frames"),
        ((torch.ones(4),), [4, 4], "for 1 clips and this prompt has 2"),
        ((torch.ones(4), torch.ones(3)), [4, 5], "3 scores and the clip has 5 frames"),
    ],
)
def test_scores_that_do_not_fit_the_clips_are_refused(given, counts, words):
    with pytest.raises(ValueError, match=words):
        split_scores(given, counts)
