"""Stages inside the decoder: scaling to a depth, ratios taken along, means over layers."""

import pytest
import torch

from vtprune.blocks.stages import between, fit_layers, follow, layer_mean, pools, stages_at, with_layer_mean
from vtprune.tokens import Segment, VisualTokens


@pytest.mark.parametrize("depth", range(2, 90))
def test_layers_fit_any_depth(depth):
    """Oracle: the same fraction of the depth to within half a layer, unless that is outside 1..depth - 1."""
    for layer, fitted in zip((3, 17, 31), fit_layers((3, 17, 31), 32, depth), strict=True):
        assert 1 <= fitted < depth
        assert abs(fitted - layer * depth / 32) <= 0.5 or fitted in (1, depth - 1)


def test_layers_that_do_not_exist_are_refused():
    assert fit_layers((3, 5), None, 6) == (3, 5)
    with pytest.raises(ValueError, match=r"layers=\(3, 5\) do not all lie in this decoder, which has layers 0 to 4"):
        fit_layers((3, 5), None, 5)


def test_ratios_follow_the_last_one():
    """Oracle: the cube of each, by hand."""
    assert follow((1.0, 0.5, 0.25), 1 / 64) == pytest.approx((1, 1 / 8, 1 / 64))
    assert follow((0.5, 0.25), None) == (0.5, 0.25) and follow((0.5, 0.25), 1) == (1, 1)
    with pytest.raises(ValueError, match="keep_ratio=0.5 cannot be reached"):
        follow((1.0, 1.0), 0.5)


def test_the_mean_over_layers_is_that_of_the_layers_one_by_one():
    """Oracle: V2Drop's published schedule, 202.8 of 576 tokens on average but for its last token."""
    assert layer_mean((3, 17, 22), (0.5, 0.25, 0.0), 32) == (3 + 14 * 0.5 + 5 * 0.25) / 32
    assert layer_mean((3, 17, 22), (0.5, 0.25, 1 / 576), 32) * 576 == pytest.approx(202.8, abs=0.05)


@pytest.mark.parametrize("wanted", [0.1, 0.2, 11.25 / 32, 0.5, 0.9, 1.0])
def test_ratios_move_until_their_mean_is_met(wanted):
    ratios = with_layer_mean((3, 17, 22), (0.5, 0.25, 0.0), 32, wanted)
    assert layer_mean((3, 17, 22), ratios, 32) == pytest.approx(wanted)
    assert list(ratios) == sorted(ratios, reverse=True) and all(0 <= ratio <= 1 for ratio in ratios)


def test_a_mean_below_the_first_layers_share_leaves_nothing():
    assert with_layer_mean((3, 17), (0.5, 0.25), 32, 0.05) == (0, 0)
    assert with_layer_mean((3, 17), (0.0, 0.0), 32, 0.05) == (0, 0)


def test_tables_are_read_on_straight_lines():
    assert [between({0: 0, 10: 5, 20: 25}, at) for at in (0, 4, 10, 15, 20)] == [0, 2, 5, 15, 25]


def test_stages_of_one_place():
    assert stages_at((1, 2, 2, 3), 2) == [1, 2] and stages_at((1, 2), -1) == []


def test_pools_remember_what_they_had():
    """An image that is used up is no pool; its number is not handed on to the next."""
    memory = {}

    def seen(*sizes):
        stops = torch.tensor(sizes).cumsum(0).tolist()
        segments = tuple(Segment(slice(s - n, s), source=i) for i, (n, s) in enumerate(zip(sizes, stops, strict=True)))
        x = torch.zeros(sum(sizes), 2)
        return VisualTokens(x, x[:1], segments, memory=memory)

    assert [pool.count for pool in pools(seen(4, 6), "segment")] == [4, 6]
    [pool] = pools(seen(0, 3), "segment")
    assert (pool.count, pool.source, pool.size, pool.rows) == (6, 1, 3, slice(0, 3))
    assert [pool.count for pool in pools(seen(1, 1), "prompt")] == [2]
