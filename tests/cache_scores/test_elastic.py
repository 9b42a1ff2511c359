"""Entries averaged into their nearest anchor, against worked examples, a loop, and what the released code merges."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.cache_scores.cases import asked, cases
from vtprune.cache_scores.decode_slot import fixed_slot, forgotten
from vtprune.cache_scores.elastic import merge_anchors, nearest_anchor
from vtprune.cache_scores.keep import between, keep_best
from vtprune.cache_scores.probe import causal, received

SCORES = torch.tensor([9.0, 1, 6, 2, 7, 3, 5, 8])


def test_worked_example():
    """Oracle: by hand; keys are their own index; the first and the last entry take nothing in."""
    middle = between(8, 1, 1)
    keep = keep_best(SCORES, 3, middle)
    owner = nearest_anchor(keep, 8, middle)
    keys, values = torch.arange(8.0).view(1, 8, 1), torch.arange(8.0).mul(10).view(1, 8, 1)
    assert keep.tolist() == [0, 2, 4, 6, 7] and owner.tolist() == [0, 1, 1, 1, 2, 2, 3, 4]
    kept, merged = merge_anchors(keys, values, keep, owner)
    assert kept.flatten().tolist() == [0, 2, 4, 6, 7] and merged.flatten().tolist() == [0, 20, 45, 60, 70]
    kept, merged = merge_anchors(keys, values, keep, owner, "nearest_anchor")
    assert kept.flatten().tolist() == [0, 2, 4.5, 6, 7]


def quirk(score, n_forget, start):
    """What the released code keeps and throws into what: it takes positions in sorted order for ranks."""
    order = score[start:-1].argsort().tolist()
    anchors = [i + start for i, rank in enumerate(order) if rank > n_forget]
    thrown = [i for i, rank in enumerate(order) if rank <= n_forget]
    into = [min(range(len(anchors)), key=lambda a: abs(anchors[a] - t)) for t in thrown]
    keep = [*range(start), *anchors, len(score) - 1]
    return keep, thrown, [start + a for a in into]


def merged_by_quirk(keys, values, score, n_forget, start):
    keep, thrown, into = quirk(score, n_forget, start)
    # an entry may be thrown and kept at once there
    rows, owner = torch.tensor(keep + thrown), torch.tensor([*range(len(keep)), *into])
    slots = torch.arange(len(keep))
    return keep, merge_anchors(keys[:, rows], values[:, rows], slots, owner, "nearest_anchor")


def test_worked_example_of_the_released_code():
    """Oracle: by hand; one entry is merged into an anchor and is this anchor."""
    keys = torch.arange(8.0).view(1, 8, 1)
    keep, (merged, _) = merged_by_quirk(keys, keys, SCORES, 4, 1)
    assert keep == [0, 4, 7] and merged.flatten().tolist() == pytest.approx([0, 16 / 6, 7])


def test_released_means_are_met(golden):
    """Oracle: the authors' code, of the entries that it chooses; scores, slots and lengths."""
    found = cases(golden("elasticcache"))
    assert found
    for stored in found:
        layers, n = stored["attn_headmean"].shape[:2]
        place, dropped, start = torch.arange(n), stored["ratio_dropped"], stored["start_size"]
        q, k = asked(stored["attn_headmean"][:, None])
        score = received(q, k, scale=1.0, visible=causal(place, place.expand(layers, -1)), heads="all")
        torch.testing.assert_close(score, stored["score_sum"], rtol=1e-4, atol=1e-5)
        n_forget = int(n - n * (1 - dropped))
        for layer in range(layers):
            keys, values = stored["keys"][layer, 0], stored["values"][layer, 0]
            keep, merged = merged_by_quirk(keys, values, score[layer], n_forget, start)
            torch.testing.assert_close(merged[0], stored["out_keys"][layer, 0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(merged[1], stored["out_values"][layer, 0], rtol=1e-4, atol=1e-4)
        assert fixed_slot(n - n_forget, stored["distance"]) == stored["decode_evict_slot"]
        length, lengths = len(keep), []
        for seen in range(n + 1, n + 4):
            length += 1
            length -= min(1, forgotten(length, seen, dropped))
            lengths.append(length)
        assert lengths == stored["decode_lens"].tolist()


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.booleans(), st.data())
def test_every_entry_goes_to_the_nearest_anchor(competes, gapped, data):
    """Oracle: a loop in float64, over entries at places with gaps or without."""
    n, generator = len(competes), torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    candidates, score = torch.tensor(competes), torch.rand(n, generator=generator)
    place = torch.randint(1, 4, (n,), generator=generator).cumsum(0) if gapped else torch.arange(n)
    keep = keep_best(score, data.draw(st.integers(0, sum(competes))), candidates)
    owner = nearest_anchor(keep, n, candidates, place if gapped else None)
    keys, values = (torch.randn(2, n, d, generator=generator) for d in (3, 4))
    joined = {j: [j] for j in keep.tolist()}
    anchors = [j for j in joined if competes[j]]
    for j in set(range(n)) - set(joined):
        if anchors:
            joined[min(anchors, key=lambda a: (abs(int(place[a] - place[j])), a))].append(j)
        else:
            assert owner[j] == -1
    for how in ("value_only", "nearest_anchor"):
        kept, merged = merge_anchors(keys, values, keep, owner, how)
        for x, found, averaged in ((keys, kept, how == "nearest_anchor"), (values, merged, True)):
            means = [x[:, rows if averaged else rows[:1]].double().mean(1) for rows in joined.values()]
            expected = torch.stack(means, 1) if means else x[:, :0].double()
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_everything_kept_is_left_as_it_is():
    """Oracle: the entries themselves, in bits, in half precision too."""
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    keep = torch.arange(5)
    for how in ("value_only", "nearest_anchor"):
        assert all(torch.equal(x, y) for y in merge_anchors(x, x, keep, nearest_anchor(keep, 5), how))


def test_another_way_to_merge_is_refused():
    x = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="'value_only', 'nearest_anchor'; got 'mean'"):
        merge_anchors(x, x, torch.arange(2), torch.arange(2), "mean")
