"""PrefixKV in a model: what every layer keeps, computed by hand from eager attention, and by a profile."""

import re

import pytest
import torch

import vtprune
from tests import tiny
from tests.masked import model_of
from tests.policies.by_hand import ByHand, assert_kept, best, everywhere, kept_by, read
from tests.policies.contract import samples_of
from vtprune.blocks.probe_rows import Probes
from vtprune.policies.prefixkv import PrefixKV


def mass(hand: ByHand, layer: int) -> torch.Tensor:
    """(N,): the attention that every visual token gets from all queries, mean over heads."""
    return hand.attention[layer].mean(0).sum(0)[hand.visual]


def kept(hand: ByHand, layer: int, k: int) -> torch.Tensor:
    return best(mass(hand, layer), k)


def prefixes(hand: ByHand, p: float) -> list[int]:
    """How many tokens each layer needs, best ones first, to hold the share ``p`` of its visual attention."""
    needed = []
    for layer in hand.layers:
        order, held = sorted(mass(hand, layer).tolist(), reverse=True), 0.0
        for count, one in enumerate(order, 1):
            held += one / sum(order)
            if held >= p - 1e-12 or count == len(order):
                needed.append(count)
                break
    return needed


def of_total(hand: ByHand, total: int) -> list[int]:
    """The same, for that share at which the layers keep ``total`` together: thresholds halve until they do."""
    low, high = 0.0, 1.0
    for _ in range(200):
        p = (low + high) / 2
        found = prefixes(hand, p)
        if sum(found) == total:
            return found
        low, high = (p, high) if sum(found) < total else (low, p)
    raise AssertionError(f"no threshold gives {total}")


@pytest.mark.parametrize(("family", "kind"), everywhere())
def test_what_stays_is_computed_by_hand(family, kind):
    """Oracle: eager attention of each sample alone; one share of it for all layers, and the total that was asked."""
    counts = assert_kept("prefixkv", family, kept, kind, keep_ratio=0.4)
    for b, found in enumerate(counts):
        hand = read(family, kind, b)
        assert found == of_total(hand, round(0.4 * len(hand.visual) * len(hand.layers)))
    assert any(len(set(found)) > 1 or len(found) == 1 for found in counts), "all layers keep as many"


def test_the_published_search_ends_near():
    """Oracle: a bisection of its own with the published tolerance of 5 on all tokens, scaled and rounded down."""
    for n_keep in (3, 7, 11):
        counts = assert_kept("prefixkv", "llava", kept, n_keep=n_keep, search="published")
        for b, found in enumerate(counts):
            hand = read("llava", "image", b)
            size, target, low, high = len(hand.visual), 4 * (len(hand.visual) - n_keep), 0.0, 1.0
            while True:
                p = (low + high) / 2
                drops = [size - one for one in prefixes(hand, p)]
                if abs(sum(drops) - target) < 5:
                    break
                low, high = (p, high) if sum(drops) > target else (low, p)
            assert found == [size - int(drop * target / sum(drops)) for drop in drops]
            assert 4 * n_keep <= sum(found) < 4 * n_keep + 4


def test_the_last_queries_and_drawn_ones_vote():
    """Oracle: eager attention of those rows that the layer says it was asked about."""
    seen = {}

    class Noting(PrefixKV):
        def score(self, layer):
            seen[layer.index] = layer.probed(Probes(self.queries, self.queries))
            return super().score(layer)

    model, hand = model_of("qwen2_5_vl"), read("qwen2_5_vl", "image", 0)
    inputs, length = tiny.collate("qwen2_5_vl", [samples_of("qwen2_5_vl", "image")[0]]), hand.attention[0].shape[1]
    with vtprune.pruned(model, Noting(n_keep=5, queries=4)) as report:
        tiny.greedy(model, inputs, 1)
        found = report.last.cached
    for i, layer in enumerate(found.layers):
        rows = seen[layer]
        assert (
            len(rows) == 8 and rows[-4:].tolist() == list(range(length - 4, length)) and (rows[:4] < length - 4).all()
        )
        expected = hand.attention[layer].mean(0)[rows].sum(0)[hand.visual]
        assert torch.equal(found.kept[i][0], best(expected, found.kept[i][0].shape[0]))
    assert_kept("prefixkv", "qwen2_5_vl", kept, n_keep=5, queries=40)  # all of them
    batch = tiny.collate("qwen2_5_vl", samples_of("qwen2_5_vl", "image"))
    together = kept_by(model, batch, "prefixkv", n_keep=5, queries=4)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(together.kept, found.kept, strict=True)), "drawn by the prompt"


# ------------------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep_ratio": 0.0}, "keep_ratio is the fraction of visual tokens KEPT, in (0, 1]; got 0.0"),
        ({"n_keep": 0}, "n_keep is the number of visual tokens kept, an integer of 1 or more; got 0"),
        ({"keep_ratio": 0.5, "n_keep": 3}, "give keep_ratio or n_keep, not both"),
        ({"queries": 0}, "queries is an integer of 1 or more or None; got 0"),
        ({"search": "fast"}, "search is one of 'exact', 'published'; got 'fast'"),
        ({"profile": "no.json"}, "there is no file no.json; make it with `vtprune cache-profile`"),
    ],
)
def test_wrong_options_are_told(options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        PrefixKV(**options)
