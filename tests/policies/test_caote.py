"""CAOTE in a model: what stays, by taking tokens out of the last queries' attention one by one."""

import pytest
import torch

from tests.policies.by_hand import LATENT, ByHand, assert_kept, best, everywhere
from vtprune.policies.caote import CAOTE


def score(hand: ByHand, layer: int, queries: int = 8, fast: bool = False) -> torch.Tensor:
    """(H_kv, N): how far the output of attention moves, mean over the last queries and each key head's query heads."""
    attention, values = hand.attention[layer][:, -queries:], hand.values[layer]
    share, out = len(attention) // len(values), []
    for group, v in enumerate(values):
        moved = [
            torch.stack([change(row, v, j, fast) for j in hand.visual])
            for head in attention[group * share : (group + 1) * share]
            for row in head
        ]
        out.append(torch.stack(moved).mean(0))
    return torch.stack(out)


def change(row: torch.Tensor, values: torch.Tensor, j: int, fast: bool) -> torch.Tensor:
    if fast:
        return row[j] / (1 - row[j]) * (values.mean(0) - values[j]).norm()
    left = row.clone()
    left[j] = 0
    return (row @ values - left / left.sum() @ values).norm()


@pytest.mark.parametrize(("family", "kind"), everywhere())
def test_what_stays_is_computed_by_hand(family, kind):
    """Oracle: the output of eager attention with and without each visual token; of latents one set stays."""

    def expected(hand, layer, k):
        found = score(hand, layer)
        return best(found.mean(0) if family == LATENT else found, k)

    assert_kept("caote", family, expected, kind, keep_ratio=0.4)


@pytest.mark.parametrize("options", [{"queries": 1}, {"fast": True, "queries": 3}])
def test_options_are_those_of_the_formula(options):
    assert_kept("caote", "qwen2_5_vl", lambda hand, i, k: best(score(hand, i, **options), k), n_keep=5, **options)


def test_one_set_for_all_heads_is_that_of_the_mean():
    assert_kept("caote", "llava", lambda hand, i, k: best(score(hand, i).mean(0), k), n_keep=5, heads="all")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"queries": None}, "queries is an integer of 1 or more; got None"),
        ({"fast": "yes"}, "fast is one of True, False; got 'yes'"),
        ({"heads": "one"}, "heads is one of 'all', 'kv'; got 'one'"),
    ],
)
def test_wrong_options_are_told(options, said):
    with pytest.raises(ValueError, match=said):
        CAOTE(**options)
