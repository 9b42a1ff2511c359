"""VATP in a model: what stays, computed by hand from eager attention and the values in the cache."""

import pytest
import torch

from tests import tiny
from tests.policies.by_hand import LATENT, ByHand, assert_kept, best, eager_of, everywhere, grouped
from vtprune.policies.vatp import VATP

SINKS = 8


def paid(hand: ByHand, layer: int, queries: int | None = None) -> torch.Tensor:
    """(H_kv, S): what the last so many queries pay, summed, mean over each key head's query heads."""
    rows = hand.attention[layer] if queries is None else hand.attention[layer][:, -queries:]
    return grouped(rows.sum(1), hand.heads)


def score(hand: ByHand, layer: int, size, sink_len: int = SINKS, queries: int | None = None) -> torch.Tensor:
    """(H_kv, N): size is a function of the values (H_kv, S, d)."""
    out = paid(hand, layer, queries) * size(hand.values[layer])
    out[:, :sink_len] = torch.inf
    return out[:, hand.visual]


def absolute(values):
    return values.abs().sum(-1)


@pytest.mark.parametrize(("family", "kind"), everywhere())
def test_what_stays_is_computed_by_hand(family, kind):
    """Oracle: accumulated eager attention times the values' absolute sum; the first tokens stay."""

    def expected(hand, layer, k):
        return best(one_set(family, score(hand, layer, absolute)), k)

    assert_kept("vatp", family, expected, kind, keep_ratio=0.4, sink_len=SINKS)


def one_set(family: str, score: torch.Tensor) -> torch.Tensor:
    """Latents are shared by all heads: of their cache one set stays."""
    return score.mean(0) if family == LATENT else score


def projected(values: torch.Tensor, layer: int) -> torch.Tensor:
    """(H_kv, S): the absolute sum of each value behind the output projection of each query head, mean over these."""
    weight = tiny.text_model(eager_of("qwen2_5_vl")).layers[layer].self_attn.o_proj.weight
    heads = weight.shape[1] // values.shape[-1]
    out = []
    for head in range(heads):
        of_group = values[head // (heads // len(values))]
        columns = weight[:, head * values.shape[-1] : (head + 1) * values.shape[-1]]
        out.append((of_group @ columns.T).abs().sum(-1))
    return grouped(torch.stack(out), len(values))


def test_other_weights():
    """Oracle: the sizes spelt out; without any it is accumulated attention."""
    sizes = {
        "none": lambda layer: lambda values: torch.ones_like(values[..., 0]),
        "l2_v": lambda layer: lambda values: values.square().sum(-1).sqrt(),
        "l1_WoV": lambda layer: lambda values: projected(values, layer),
    }
    for name, size in sizes.items():

        def expected(hand, layer, k, size=size):
            return best(score(hand, layer, size(layer), sink_len=0), k)

        assert_kept("vatp", "qwen2_5_vl", expected, n_keep=6, value_weighting=name, sink_len=0)


@pytest.mark.parametrize("fast", [False, True])
def test_weighing_by_the_change_of_the_output(fast):
    """Oracle: accumulated attention for a distribution, one token taken out and the others scaled up again."""

    def expected(hand, layer, k):
        rows, values = paid(hand, layer), hand.values[layer]
        rows = rows / rows.sum(-1, keepdim=True)
        return best(
            torch.stack([changes(row, v, fast) for row, v in zip(rows, values, strict=True)])[:, hand.visual], k
        )

    weighing = "caote_fast" if fast else "caote"
    assert_kept("vatp", "llava", expected, n_keep=6, value_weighting=weighing, sink_len=0)


def changes(row: torch.Tensor, values: torch.Tensor, fast: bool = False) -> torch.Tensor:
    """(S,): how far the output moves when one key goes. row: (S,) attention of sum 1."""
    if fast:
        return row / (1 - row) * (values.mean(0) - values).norm(dim=-1)
    moved = []
    for j in range(len(row)):
        left = row.clone()
        left[j] = 0
        moved.append((row @ values - left @ values / left.sum()).norm())
    return torch.stack(moved)


def test_the_last_queries_alone_and_one_set_for_all_heads():
    def expected(hand, layer, k):
        return best(score(hand, layer, absolute, 0, queries=4).mean(0), k)

    assert_kept("vatp", "qwen3_vl", expected, n_keep=5, queries=4, heads="all", sink_len=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"queries": 0}, "queries is an integer of 1 or more or None; got 0"),
        ({"value_weighting": "l3"}, "value_weighting is one of 'none', 'l1_v', .*; got 'l3'"),
        ({"heads": 2}, "heads is one of 'all', 'kv'; got 2"),
        ({"sink_len": -1}, "sink_len is a number of first tokens, 0 or more; got -1"),
        ({"sink_len": False}, "sink_len is a number of first tokens, 0 or more; got False"),
    ],
)
def test_wrong_options_are_told(options, said):
    with pytest.raises(ValueError, match=said):
        VATP(**options)
