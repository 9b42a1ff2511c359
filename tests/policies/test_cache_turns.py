"""Policies of the cache in a second turn with a picture of its own: what stays, computed by hand from both turns."""

import pytest
import torch
from torch import Tensor

import vtprune
from tests import tiny
from tests.evicted import EvictedColumns, stays
from tests.masked import model_of
from tests.policies import test_caote, test_expected_attention, test_snapkv, test_vatp
from tests.policies.by_hand import ByHand, best, eager_of, inputs_of_attention, read_out
from tests.policies.test_prefixkv import mass

FAMILY = "qwen2_5_vl"
SINK, N_FUTURE = 23, 3

SCORES = {
    "prefixkv": ({}, lambda hand, i: mass(hand, i)),
    "elastic_cache": ({"merge": "none"}, lambda hand, i: mass(hand, i)),
    "snapkv": ({}, test_snapkv.score),
    "caote": ({}, test_caote.score),
    "vatp": ({"sink_len": 3}, lambda hand, i: test_vatp.score(hand, i, test_vatp.absolute, sink_len=3)),
    "expected_attention": (
        {"n_sink": SINK, "n_future": N_FUTURE, "heads": "all"},
        lambda hand, i: test_expected_attention.score(FAMILY, hand, i, N_FUTURE, SINK).mean(0),
    ),
}
"""Options, and what is scored. Sinks reach into the second turn, of whose queries one is left out then."""


def turns(model, between, kind="one", **more):
    inputs = tiny.collate(FAMILY, tiny.samples(FAMILY, kind))
    first = tiny.greedy(model, inputs, 3)
    past = first.past_key_values.get_seq_length()
    between()
    turn = tiny.new_turn(FAMILY, model, inputs, first.sequences, True)
    out = tiny.greedy(model, turn, 1, past_key_values=first.past_key_values, **more)
    return turn, past, out


@pytest.mark.parametrize("name", SCORES)
def test_what_stays_of_a_later_picture(name):
    """Oracle: eager attention at full length in both turns, where what the first turn evicted is hidden.

    A batch of two with padding, and the first sample of it alone.
    """
    (options, score), hidden = SCORES[name], []
    with vtprune.pruned(model_of(FAMILY), name, n_keep=7, **options) as report:
        turns(model_of(FAMILY), lambda: hidden.append(stays(model_of(FAMILY))))
        found = report.last.cached
        turns(model_of(FAMILY), lambda: None, "ragged")
        together = report.last.cached
    assert all(torch.equal(one[0], both[0]) for one, both in zip(found.kept, together.kept, strict=True))
    eager = eager_of(FAMILY)
    with EvictedColumns(eager, hidden), inputs_of_attention(eager) as normed:
        turn, past, out = turns(eager, lambda: None, output_attentions=True)
    whole = read_out(eager, turn, out, normed)
    for i, layer in enumerate(found.layers):
        kept, masks = found.kept[i][0], hidden[0][1][layer][0]
        # by key head, as each has keys of its own
        for head, left in enumerate(masks):
            left = torch.cat([left, torch.ones(turn["input_ids"].shape[1] - len(left), dtype=torch.bool)])
            hand = left_of(whole, layer, left, past)
            scored = score(hand, layer)
            rows = kept if kept.dim() == 1 else kept[head]
            assert torch.equal(rows, best(scored if scored.dim() == 1 else scored[head], len(rows)))


def left_of(hand: ByHand, layer: int, left: Tensor, past: int) -> ByHand:
    """The same of those columns alone that were left when the second turn began; only its own picture competes."""
    visual = torch.zeros(len(left), dtype=torch.bool)
    visual[hand.visual] = True
    visual[:past] = False
    return ByHand(
        {layer: hand.attention[layer][:, :, left]},
        {layer: hand.keys[layer][:, left]},
        {layer: hand.values[layer][:, left]},
        hand.normed,
        visual[left].nonzero().flatten(),
        hand.next,
        hand.layers,
        hand.heads,
    )
