"""Runs of tokens of one place, against plain loops and the released code's results."""

import dataclasses
import importlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.policies.golden import load
from vtprune.blocks.frame_runs import anchors, clip_of_segments, previous_in_time, running_means, similarity_to
from vtprune.tokens import Segment

kernel = importlib.import_module("vtprune_kernels.frame_similarity")  # the package has the function of that name
places = st.tuples(st.integers(-1, 1), st.integers(0, 3), st.integers(-1, 2), st.integers(0, 1))
rows_of_clips = st.lists(st.tuples(st.integers(3, 5), places), max_size=40)


def latest(known, i):
    """The last row before i of the same clip and place, by looking at each."""
    clip, (view, frame, row, column) = known[i]
    if min(view, frame, row, column) < 0:
        return -1
    same = [j for j in range(i) if known[j][0] == clip and min(known[j][1]) >= 0]
    same = [j for j in same if (known[j][1][0], *known[j][1][2:]) == (view, row, column)]
    return max(same, default=-1)


@given(rows_of_clips)
def test_the_previous_token_is_the_last_one_of_its_place(known):
    """Oracle: looking at every earlier token. Places of a frame may be missing, repeated or unknown."""
    known = sorted(known, key=lambda entry: (entry[0], entry[1][1]))
    clip = torch.tensor([clip for clip, _ in known], dtype=torch.int64)
    coords = torch.tensor([place for _, place in known], dtype=torch.int64).view(-1, 4)
    assert previous_in_time(clip, coords).tolist() == [latest(known, i) for i in range(len(known))]


@pytest.mark.parametrize("block", [64, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_similarity_is_the_cosine_with_the_previous_token(dtype, block, monkeypatch):
    """Oracle: a loop over rows in Python's floats."""
    monkeypatch.setattr(kernel, "BLOCK_BYTES", block)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(11, 8, generator=generator).to(dtype)
    x[3], x[5] = x[1], -2 * x[2]
    previous = torch.tensor([-1, -1, -1, 1, 0, 2, 3, -1, 4, 4, 0])
    similarity = similarity_to(x, previous)
    assert similarity.dtype == dtype
    for i, j in enumerate(previous.tolist()):
        a, b = x[i].tolist(), x[j].tolist()
        norms = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
        expected = -2 if j < 0 else sum(v * w for v, w in zip(a, b, strict=True)) / norms
        assert float(similarity[i]) == pytest.approx(expected, abs=4 * torch.finfo(dtype).eps)


def test_rows_of_zeros_are_similar_to_nothing():
    similarity = similarity_to(torch.tensor([[0.0, 0], [0, 0], [1, 0], [1, 0]]), torch.tensor([-1, 0, 1, 2]))
    assert (similarity >= -1).tolist() == [False, False, False, True]
    assert similarity[1:3].isnan().all()


def test_large_float16_values_do_not_overflow():
    """Squares of 3,000 are beyond float16; the two rows stand at a right angle."""
    x = torch.tensor([[3000, 3000], [3000, -3000]], dtype=torch.float16)
    assert similarity_to(x, torch.tensor([-1, 0])).tolist() == [-2, 0]


@given(st.lists(st.tuples(st.integers(0, 10**6), st.booleans()), max_size=40))
def test_the_anchor_is_where_the_run_begins(links):
    """Oracle: going back one row at a time."""
    previous = [pick % (i + 1) - 1 for i, (pick, _) in enumerate(links)]
    joins = [j >= 0 and wish for j, (_, wish) in zip(previous, links, strict=True)]
    expected = []
    for i in range(len(links)):
        while joins[i]:
            i = previous[i]
        expected.append(i)
    got = anchors(torch.tensor(previous, dtype=torch.int64), torch.tensor(joins, dtype=torch.bool))
    assert got.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_running_means_round_after_every_row(dtype):
    """Oracle: a loop over a run of 300 and a run of 2 that are woven into each other, row by row, in the dtype."""
    x = torch.randn(303, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    previous = torch.arange(303) - 1
    previous[150], previous[151], previous[1] = -1, 149, 0
    previous[302] = -1
    joins = previous >= 0
    means = running_means(x, previous, joins, anchors(previous, joins))
    total, count = x[0].clone(), torch.ones(1, dtype=dtype)
    for i in [*range(1, 150), *range(151, 302)]:
        total, count = total + x[i], count + 1
    assert torch.equal(means[0], total / count)
    assert torch.equal(means[150], x[150]) and torch.equal(means[302], x[302])
    assert float(count) == (256 if dtype == torch.bfloat16 else 301)


def test_one_merging_step_of_the_released_code_is_met(golden):
    """Oracle: the authors' code: similarities, rows that stay, their means."""
    path = golden("framefusion") / "merge_unit.npz"
    assert path.is_file()
    case = load(path)
    visual = (case["patch_type"] >= 0).nonzero().flatten()
    place = case["patch_type"][visual]
    coords = torch.stack([torch.zeros_like(place)] * 3 + [place], 1)
    previous = previous_in_time(torch.zeros_like(place), coords)
    x = case["hidden"][visual]
    similarity = similarity_to(x, previous)
    order = torch.searchsorted(visual, case["order"])
    torch.testing.assert_close(similarity[order], case["sim_by_patch"], atol=1e-6, rtol=0)
    joins = similarity >= float(case["thr"])
    assert joins[order].nonzero().flatten().tolist() == case["merge_idx"].tolist()
    anchor = anchors(previous, joins)
    keep = torch.ones(len(case["hidden"]), dtype=torch.bool)
    keep[visual[joins]] = False
    assert keep.tolist() == case["keep"].tolist()
    hidden = case["hidden"].clone()
    hidden[visual] = running_means(x, previous, joins, anchor)
    torch.testing.assert_close(hidden[keep], case["merged"], atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------------------ clips


def segments_of(*grids):
    """Segments of whole grids, in order."""
    out, at = [], 0
    for source, grid in enumerate(grids):
        n = sum(t * h * w for t, h, w in grid) if grid else 5
        out.append(Segment(slice(at, at + n), tuple(grid), "image", source))
        at += n
    return out


def test_clips_of_images():
    """Two frames, an image of another size, two frames that touch, one apart from them, a video, unknown ones."""
    frame, wide, video = [(1, 2, 2)], [(1, 2, 3)], [(2, 2, 2)]
    segments = segments_of(frame, frame, wide, frame, frame, frame, video, video, [], [])
    starts, at = [], 3
    for i, segment in enumerate(segments):
        at += 0 if i == 4 else 2
        starts.append(torch.arange(at, at + len(segment)))
        at += len(segment)
    position = torch.cat(starts)
    assert clip_of_segments(segments, position, "apart") == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert clip_of_segments(segments, position, "frames") == [0, 0, 2, 3, 3, 3, 6, 7, 8, 9]
    assert clip_of_segments(segments, position, "spaced") == [0, 0, 2, 3, 4, 4, 6, 7, 8, 9]
    assert clip_of_segments(segments, None, "spaced") == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert clip_of_segments([], None, "frames") == []


def test_images_of_different_clips_are_never_joined():
    """Oracle: by hand; the third picture is a frame of none."""
    told = [dataclasses.replace(s, clip=c) for s, c in zip(segments_of(*[[(1, 2, 2)]] * 6), (0, 0, None, 1, 1, 2))]
    assert clip_of_segments(told, None, "frames") == [0, 0, 2, 3, 3, 5]
