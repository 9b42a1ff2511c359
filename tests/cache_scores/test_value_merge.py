"""Values added to entries of like keys, against the released code's and a loop."""

import torch

from tests.cache_scores.cases import case
from vtprune.cache_scores.keep import keep_best
from vtprune.cache_scores.value_merge import merge_values


def test_released_values_are_met(golden):
    """Oracle: the released code, on observed attention; its entries are sorted by score."""
    stored = case(golden("kvpress") / "tiny_llama_layer1")
    keys, values, score = stored["keys"][0], stored["values"][0], stored["results/observed/score"][0]
    keep = keep_best(score, 24)
    merged = merge_values(keys, values, keep)
    for head in range(2):
        order = score[head, keep[head]].argsort(descending=True)
        assert torch.equal(keys[head, keep[head]][order], stored["results/merging_observed/keys"][0, head])
        expected = stored["results/merging_observed/values"][0, head]
        torch.testing.assert_close(merged[head][order], expected, rtol=1e-4, atol=1e-4)


def test_entries_join_one_after_the_other(monkeypatch):
    """Oracle: a loop in float64; keys against which all others point take nothing in."""
    monkeypatch.setattr("vtprune.cache_scores.value_merge.BLOCK", 3)
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 11, d, generator=generator) for d in (3, 4))
    keep = torch.tensor([1, 4, 8])
    merged = merge_values(keys, values, keep)
    for head in range(2):
        key, value = keys[head].double(), values[head].double()
        total, weight = {j: value[j].clone() for j in keep.tolist()}, dict.fromkeys(keep.tolist(), 1.0)
        for e in set(range(11)) - set(total):
            cosine, to = max((float(torch.cosine_similarity(key[e], key[j], dim=0)), -j) for j in total)
            w = max(cosine, 0) * value[e].norm() / (value[e].norm() + value[-to].norm() + 1e-6)
            total[-to] += w * value[e]
            weight[-to] += w
        expected = torch.stack([total[j] / weight[j] for j in total])
        torch.testing.assert_close(merged[head].double(), expected, rtol=0, atol=1e-6)


def test_nothing_changes_where_nothing_goes():
    """Oracle: the values themselves, in bits; no entry at all."""
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(merge_values(x, x, torch.arange(5)), x)
    assert merge_values(x, x, torch.arange(0)).shape == (2, 0, 3)
