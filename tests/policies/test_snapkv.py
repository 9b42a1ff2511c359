"""SnapKV in a model: what stays, computed by hand from eager attention."""

import pytest
import torch

from tests.policies.by_hand import ByHand, assert_kept, best, everywhere, grouped
from vtprune.policies.snapkv import SnapKV


def smoothed(mean: torch.Tensor, pool: int) -> torch.Tensor:
    """(G, n): means over ``pool`` neighbours, where those beyond the ends are zeros."""
    out, n = torch.zeros_like(mean), mean.shape[-1]
    for i in range(n):
        for j in range(i - pool // 2, i + pool // 2 + 1):
            out[:, i] += mean[:, j] / pool if 0 <= j < n else 0
    return out


def score(hand: ByHand, layer: int, window: int = 64, pool: int = 5) -> torch.Tensor:
    """(H_kv, N): the mean of what the last queries pay, none of which is the picture's, smoothed."""
    attention = grouped(hand.attention[layer], hand.heads)
    length = attention.shape[-1]
    window = min(window, length - 1 - int(hand.visual[-1]))
    return smoothed(attention[:, -window:, : length - window].mean(1), pool)[:, hand.visual]


@pytest.mark.parametrize(("family", "kind"), everywhere())
def test_what_stays_is_computed_by_hand(family, kind):
    """Oracle: eager attention of each sample alone, a batch of two and of one."""
    counts = assert_kept("snapkv", family, lambda hand, i, k: best(score(hand, i), k), kind, keep_ratio=0.4)
    assert all(max(layers) - min(layers) <= 1 for layers in counts)


@pytest.mark.parametrize("options", [{"window": 3}, {"pool": 1}, {"window": 2, "pool": 9}])
def test_options_are_those_of_the_formula(options):
    assert_kept("snapkv", "qwen2_5_vl", lambda hand, i, k: best(score(hand, i, **options), k), n_keep=4, **options)


def test_one_set_for_all_heads_is_that_of_the_mean():
    """Oracle: the mean over all query heads before smoothing."""

    def expected(hand, layer, k):
        return best(score(hand, layer).mean(0), k)

    assert_kept("snapkv", "llava", expected, n_keep=5, heads="all")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 0}, "window is an integer of 1 or more; got 0"),
        ({"pool": 4}, "pool is an odd number of neighbours, 1 or more; got 4"),
        ({"pool": True}, "pool is an odd number of neighbours, 1 or more; got True"),
        ({"heads": "each"}, "heads is one of 'all', 'kv'; got 'each'"),
    ],
)
def test_wrong_options_are_told(options, said):
    with pytest.raises(ValueError, match=said):
        SnapKV(**options)
