"""Evenly spread tokens, against grids worked out by hand."""

import pytest
import torch

from tests.policies.fabricate import LAYOUTS, Sample, Source, serve
from vtprune.policies.uniform import Uniform
from vtprune.tokens import Segment, VisualTokens


def grid_tokens(*views, order=None, rows=None):
    coords = Source(tuple(views)).coords()
    if order is not None:
        coords = coords[order]
    if rows is not None:
        coords = coords[rows]
    hidden = torch.zeros(len(coords), 2)
    return VisualTokens(hidden, hidden[:1], (Segment(slice(0, len(coords)), tuple(views)),), coords=coords)


def keep(tokens, k, **options):
    return Uniform(n_keep=k, **options).select(tokens).keep.tolist()


@pytest.mark.parametrize(
    ("grid", "k", "rows"),
    [
        # nine cells of 2 x 2, the first of four equally central tokens each
        ((1, 6, 6), 9, [0, 2, 4, 12, 14, 16, 24, 26, 28]),
        # four cells of 3 x 3, their middle
        ((1, 6, 6), 4, [7, 10, 25, 28]),
        ((1, 3, 3), 1, [4]),
        # a line of 7 in two: 0..2 and 3..6 or 0..3 and 4..6
        ((1, 1, 9), 3, [1, 4, 7]),
        ((1, 9, 1), 3, [1, 4, 7]),
        # four frames, four tokens: the centre of each frame
        ((4, 3, 3), 4, [4, 13, 22, 31]),
        # four frames, two tokens: a stride over frames, the centre of the first of two equally central frames
        ((4, 3, 3), 2, [4, 22]),
        # six frames in two runs of three: the middle frame's centre
        ((6, 3, 3), 2, [13, 40]),
        # two frames, three tokens: the second frame is halved
        ((2, 2, 2), 3, [0, 4, 5]),
    ],
)
def test_hand_worked_grids(grid, k, rows):
    assert keep(grid_tokens(grid), k) == rows


def test_views_share_the_budget_by_size():
    """A 6 x 6 thumbnail and a 12 x 9 view are 1 to 3: of 16 tokens the thumbnail keeps 4, in cells of 3 x 3."""
    rows = keep(grid_tokens((1, 6, 6), (1, 12, 9)), 16)
    assert [row for row in rows if row < 36] == [7, 10, 25, 28]
    # 108 tokens in 12 cells of 3 x 3
    assert [row - 36 for row in rows if row >= 36] == [9 * r + c for r in (1, 4, 7, 10) for c in (1, 4, 7)]


def test_no_view_is_starved_while_there_is_one_token_for_each():
    rows = keep(grid_tokens((1, 1, 2), (1, 12, 12), (1, 1, 3)), 3)
    assert [sum(low <= row < high for row in rows) for low, high in ((0, 2), (2, 146), (146, 149))] == [1, 1, 1]


def test_fewer_tokens_than_views_go_to_the_largest():
    assert keep(grid_tokens((1, 1, 1), (1, 3, 3)), 1) == [1 + 4]


def test_places_count_and_not_prompt_order():
    """The 6 x 9 grid told in any order: the middles of its six 3 x 3 cells are kept, under their new row numbers."""
    order = torch.randperm(54, generator=torch.Generator().manual_seed(0))
    kept = order[keep(grid_tokens((1, 6, 9), order=order), 6)]
    assert sorted(kept.tolist()) == [9 * r + c for r in (1, 4) for c in (1, 4, 7)]


@pytest.mark.parametrize(
    "what", ["no coords", "coords of -1", "pruned before", "grid that does not fit", "a place twice"]
)
def test_without_a_whole_grid_tokens_are_a_line(what):
    """Nine tokens in three runs: the middle of each."""
    hidden = torch.zeros(9, 2)
    if what == "no coords":
        tokens = VisualTokens(hidden, hidden, (Segment(slice(0, 9), ((1, 3, 3),)),))
    elif what == "coords of -1":
        tokens = VisualTokens(hidden, hidden, (Segment(slice(0, 9)),), coords=torch.full((9, 4), -1))
    elif what == "pruned before":
        tokens = grid_tokens((1, 4, 4), rows=torch.tensor([0, 1, 2, 5, 7, 8, 11, 14, 15]))
    elif what == "grid that does not fit":
        coords = Source(((1, 1, 9),)).coords()
        tokens = VisualTokens(hidden, hidden, (Segment(slice(0, 9), ((1, 3, 3),)),), coords=coords)
    else:
        coords = Source(((1, 3, 3),)).coords()
        coords[8] = coords[0]
        tokens = VisualTokens(hidden, hidden, (Segment(slice(0, 9), ((1, 3, 3),)),), coords=coords)
    assert keep(tokens, 3) == [1, 4, 7]


def test_one_budget_for_the_prompt_is_shared_by_size_over_images():
    """24, 9, 24 and 10 tokens, 10 of 67 kept: shares 3.58, 1.34, 3.58, 1.49, so by largest remainder 4, 1, 4, 1."""
    [(tokens, selection)] = serve(Uniform(n_keep=10, budget="prompt"), Sample("mixed"))
    rows = selection.keep.tolist()
    assert [sum(s.span.start <= row < s.span.stop for row in rows) for s in tokens.segments] == [4, 1, 4, 1]


@pytest.mark.gpu
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_gpu_gives_the_answer_of_the_cpu(layout):
    rows = [serve(Uniform(), Sample(layout, device=device))[0][1].keep.tolist() for device in ("cpu", "cuda")]
    assert rows[0] == rows[1]
