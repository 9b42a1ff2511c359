"""Average pooling, against torch's own pooling and grids worked out by hand."""

import pytest
import torch
import torch.nn.functional as F

from tests.policies.fabricate import LAYOUTS, Sample, Source, serve
from vtprune.policies.pool import Pool
from vtprune.policies.uniform import Uniform
from vtprune.tokens import Segment, VisualTokens


def grid_tokens(*views):
    coords = Source(tuple(views)).coords()
    hidden = torch.randn(len(coords), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return VisualTokens(hidden, hidden[:1], (Segment(slice(0, len(coords)), tuple(views)),), coords=coords)


def merged(tokens, selection):
    """The kept rows by a plain loop over ``merge``."""
    members = [[i for i, j in enumerate(selection.merge.tolist()) if j == kept] for kept in range(len(selection.keep))]
    return torch.stack([tokens.hidden[rows].mean(0) for rows in members])


@pytest.mark.parametrize(("side", "window"), [(6, 2), (6, 3), (12, 2), (12, 4), (24, 3)])
def test_divisors_of_the_grid_give_torchs_average_pooling(side, window):
    tokens = grid_tokens((1, side, side))
    expected = F.avg_pool2d(tokens.hidden.T.view(1, 5, side, side), window).view(5, -1).T
    selection = Pool(n_keep=(side // window) ** 2).select(tokens)
    torch.testing.assert_close(merged(tokens, selection), expected)


def test_every_frame_is_pooled_by_itself():
    tokens = grid_tokens((3, 4, 4))
    expected = (
        F.avg_pool2d(tokens.hidden.view(3, 4, 4, 5).permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2).flatten(0, 1)
    )
    torch.testing.assert_close(merged(tokens, Pool(n_keep=12).select(tokens)), expected)


def test_fewer_cells_than_frames_average_runs_of_frames():
    tokens = grid_tokens((4, 3, 3))
    expected = tokens.hidden.view(2, 18, 5).mean(1)
    torch.testing.assert_close(merged(tokens, Pool(n_keep=2).select(tokens)), expected)


def test_views_are_pooled_by_themselves():
    """A 4 x 4 thumbnail in 4 cells and an 8 x 8 view in 16."""
    tokens = grid_tokens((1, 4, 4), (1, 8, 8))
    thumbnail, view = tokens.hidden[:16].T.view(1, 5, 4, 4), tokens.hidden[16:].T.view(1, 5, 8, 8)
    expected = torch.cat([F.avg_pool2d(part, 2).view(5, -1).T for part in (thumbnail, view)])
    torch.testing.assert_close(merged(tokens, Pool(n_keep=20).select(tokens)), expected)


def test_places_count_and_not_prompt_order():
    """A 6 x 9 grid told in any order has the averages of its six 3 x 3 cells, in the order of their middle tokens."""
    order = torch.randperm(54, generator=torch.Generator().manual_seed(0))
    plain = grid_tokens((1, 6, 9))
    told = VisualTokens(plain.hidden[order], plain.text, plain.segments, coords=plain.coords[order])
    selection = Pool(n_keep=6).select(told)
    middles = order[selection.keep].tolist()
    assert sorted(middles) == [9 * r + c for r in (1, 4) for c in (1, 4, 7)]
    averages = F.avg_pool2d(plain.hidden.T.view(1, 5, 6, 9), 3).view(5, 2, 3)
    expected = torch.stack([averages[:, middle // 9 // 3, middle % 9 // 3] for middle in middles])
    torch.testing.assert_close(merged(told, selection), expected)


def test_a_merged_token_stands_where_uniform_would_keep_one():
    for layout in LAYOUTS:
        (_, pool), (_, uniform) = (serve(policy(keep_ratio=0.3), Sample(layout))[0] for policy in (Pool, Uniform))
        assert pool.keep.tolist() == uniform.keep.tolist()


def test_every_token_is_in_some_average():
    for layout in LAYOUTS:
        [(_, selection)] = serve(Pool(keep_ratio=0.3), Sample(layout))
        assert int(selection.merge.min()) == 0


def test_a_view_without_a_cell_is_dropped_and_spoils_no_average():
    tokens = grid_tokens((1, 1, 2), (1, 3, 3))
    selection = Pool(n_keep=1).select(tokens)
    assert selection.keep.tolist() == [2 + 4]
    assert selection.merge.tolist() == [-1] * 2 + [0] * 9
