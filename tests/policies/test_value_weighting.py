"""Values weigh the votes of other policies of the cache, too; computed by hand from eager attention."""

import pytest
import torch

from tests.policies.by_hand import ByHand, assert_kept, best, grouped
from vtprune import POLICIES


def size(hand: ByHand, layer: int) -> torch.Tensor:
    """(H_kv, S) lengths of the values by their absolute entries."""
    return hand.values[layer].abs().sum(-1)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_window_of_snapkv(family):
    """Oracle: mean attention of the window times the value's size, in every key head."""

    def expected(hand, layer, k):
        window = min(64, hand.attention[layer].shape[-1] - 1 - int(hand.visual[-1]))
        mean = grouped(hand.attention[layer], hand.heads)[:, -window:].mean(1)
        return best((mean * size(hand, layer))[:, hand.visual], k)

    assert_kept("snapkv", family, expected, n_keep=5, pool=1, value_weighting="l1_v")


@pytest.mark.parametrize("name", ["elastic_cache", "prefixkv"])
def test_one_set_for_a_layer_takes_the_mean_of_the_heads_sizes(name):
    """Oracle: attention summed over queries, mean over heads, times the mean size of the values."""

    def expected(hand, layer, k):
        mass = hand.attention[layer].mean(0).sum(0) * size(hand, layer).mean(0)
        return best(mass[hand.visual], k)

    assert_kept(name, "qwen2_5_vl", expected, n_keep=5, value_weighting="l1_v")


def test_the_change_of_the_output_as_a_weight():
    """Oracle: a / (1 - a) |o - v| with the window's mean attention as a, which sums to 1."""

    def expected(hand, layer, k):
        window = min(64, hand.attention[layer].shape[-1] - 1 - int(hand.visual[-1]))
        a = grouped(hand.attention[layer], hand.heads)[:, -window:].mean(1)
        a = a / a.sum(-1, keepdim=True)
        values = hand.values[layer]
        out = torch.einsum("hn,hnd->hd", a, values)
        change = a / (1 - a) * (out[:, None] - values).norm(dim=-1)
        return best(change[:, hand.visual], k)

    assert_kept("snapkv", "llava", expected, n_keep=5, pool=1, value_weighting="caote")


@pytest.mark.parametrize("name", ["snapkv", "prefixkv", "elastic_cache", "vatp"])
def test_a_wrong_weighting_is_told(name):
    with pytest.raises(ValueError, match="value_weighting is one of 'none', 'l1_v'"):
        POLICIES[name](value_weighting="l3")
