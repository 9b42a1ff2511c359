"""ToMe, against the released matching, rounds written out in lists, and a model's own embeddings."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vtprune
from tests import oracle, tiny
from tests.policies.golden import load
from vtprune.apply import merge_rows
from vtprune.blocks.bipartite import pair_up
from vtprune.policies.tome import ToMe
from vtprune.tokens import Segment, VisualTokens
from vtprune_kernels.merge import merge_tokens


def image(x):
    """The tokens of one image. x: (N, D)."""
    return VisualTokens(x, x[:0], (Segment(slice(0, len(x))),))


# -------------------------------------------------------------------------------------------- released results


def test_released_pairs_and_means_are_met(golden):
    """Oracle: the authors' code: who is merged into whom, exact, sizes and means, with and without a class token."""
    paths = sorted(golden("tome").glob("case*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        found = pair_up(case["metric"], int(case["r"]), first_stays=bool(case["class_token"]))
        assert found.stay.tolist() == case["unmerged_even"].tolist(), path.name
        assert found.gone.tolist() == case["merged_even"].tolist(), path.name
        assert found.target.tolist() == case["partner_odd"].tolist(), path.name
        n = len(case["x"])
        order = torch.cat([found.stay, torch.arange(1, n, 2)])
        to = torch.full((n,), -1)
        to[order] = torch.arange(len(order))
        to[found.gone] = to[found.target]
        merged = merge_tokens(case["x"], to, case["size"], len(order))
        torch.testing.assert_close(merged, case["merged"], rtol=1e-4, atol=2e-5)
        sizes = torch.zeros(len(order)).index_add_(0, to, case["size"])
        torch.testing.assert_close(sizes, case["new_size"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("order", ["raster", "method"])
def test_one_round_of_the_policy_is_the_released_one(golden, order):
    """Oracle: which tokens each released token is made of; in prompt order they are the same groups at odd places."""
    for path in sorted(golden("tome").glob("case*.npz")):
        case = load(path)
        if bool(case["class_token"]):
            continue
        selection = ToMe(n_keep=len(case["merged"]), order=order).select(image(case["metric"]))
        source = case["source"].bool()
        if order == "method":
            assert torch.equal(selection.merge.to_dense() > 0, source), path.name
            continue
        place = {tuple(row.nonzero().flatten().tolist()): j for j, row in enumerate(source)}
        groups = [tuple((selection.merge == j).nonzero().flatten().tolist()) for j in range(len(selection.keep))]
        assert sorted(place) == sorted(groups), path.name
        assert all(row in group and (row % 2 or len(group) == 1) for row, group in zip(selection.keep.tolist(), groups))


def test_worked_example():
    """4 -> 1 (cosine 1.0) and 0 -> 3 (0.9988) are merged; of the values 1 to 6 that is (5 + 2) / 2 and (1 + 4) / 2."""
    metric = [(1, 0), (0, 1), (0.9, 0.1), (1, 0.05), (0, 0.9), (0.5, 0.5)]
    selection = ToMe(n_keep=4).select(image(torch.tensor(metric)))
    values = torch.tensor([[1.0], [2], [3], [4], [5], [6]])
    assert selection.keep.tolist() == [1, 2, 3, 5]
    assert merge_rows(values, selection).flatten().tolist() == [3.5, 3, 2.5, 6]
    ordered = ToMe(n_keep=4, order="method").select(image(torch.tensor(metric)))
    torch.testing.assert_close(merge_rows(values, ordered).flatten(), torch.tensor([3, 3.5, 2.5, 6]))


# ------------------------------------------------------------------------------------ the rounds, in plain lists


def by_hand(vectors, k):
    """Groups of rows, ordered by the place where they stand: rounds of even to odd, means over all members."""
    groups = [([i], i) for i in range(len(vectors))]

    def mean(members):
        return [sum(vectors[i][d] for i in members) / len(members) for d in range(len(vectors[0]))]

    def cosine(a, b):
        norms = (sum(v * v for v in a) * sum(v * v for v in b)) ** 0.5
        return sum(v * w for v, w in zip(a, b)) / norms

    while len(groups) > k:
        means = [mean(members) for members, _ in groups]
        best = []
        for a in range(0, len(groups), 2):
            similar = [(cosine(means[a], means[b]), -b) for b in range(1, len(groups), 2)]
            value, partner = max(similar)
            best.append((-value, a, -partner))
        for _, a, b in sorted(best)[: min(len(groups) // 2, len(groups) - k)]:
            groups[b] = (groups[b][0] + groups[a][0], groups[b][1])
            groups[a] = None
        groups = [group for group in groups if group]
    return [(place, sorted(members)) for members, place in groups]


def found(selection):
    return [(row, (selection.merge == j).nonzero().flatten().tolist()) for j, row in enumerate(selection.keep.tolist())]


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(2, 23), st.data())
def test_any_count_follows_the_rounds_by_hand(seed, n, data):
    """Oracle: the rounds in lists and double precision; every token has the same weight in the end."""
    k = data.draw(st.integers(1, n - 1))
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    selection = ToMe(n_keep=k).select(image(x))
    expected = by_hand(x.tolist(), k)
    assert found(selection) == expected and selection.weight is None
    means = torch.stack([x[members].mean(0) for _, members in expected])
    torch.testing.assert_close(merge_rows(x, selection), means)


def test_sizes_are_carried_through_many_rounds():
    """Oracle: the rounds by hand, which take means over all members; plain means of means would pair others."""
    for seed in range(8):
        x = torch.randn(48, 5, generator=torch.Generator().manual_seed(seed))
        assert found(ToMe(n_keep=4).select(image(x))) == by_hand(x.double().tolist(), 4)


def test_images_are_never_mixed_unless_they_share_a_budget():
    """Oracle: each image alone; twins across the border only meet in one pool."""
    x = torch.randn(14, 6, generator=torch.Generator().manual_seed(1))
    x[7:] = x[:7]
    tokens = VisualTokens(x, x[:0], (Segment(slice(0, 7)), Segment(slice(7, 14), source=1)))
    alone = found(ToMe(0.5).select(image(x[:7])))
    assert found(ToMe(0.5).select(tokens)) == alone + [(7 + row, [7 + i for i in rows]) for row, rows in alone]
    pooled = found(ToMe(n_keep=7, budget="prompt").select(tokens))
    assert all(rows[1] == rows[0] + 7 and len(rows) == 2 for _, rows in pooled)


@pytest.mark.parametrize("order", ["raster", "method"])
@pytest.mark.parametrize("x", [torch.ones(9, 3), torch.zeros(8, 3), torch.ones(1, 3), torch.eye(2)])
def test_extremes_stay_finite(order, x):
    """Oracle: one token is the mean of all, in whatever rounds; equal tokens tie, and zeros have no direction."""
    selection = ToMe(n_keep=1, order=order).select(image(x))
    merged = merge_rows(x, selection)
    assert len(merged) == 1 and bool(merged.isfinite().all())
    torch.testing.assert_close(merged[0], x.mean(0))


def test_a_wrong_order_is_refused_by_value():
    with pytest.raises(ValueError, match="order.*'falling'"):
        ToMe(order="falling")


# ------------------------------------------------------------------------------------------------ whole models


@cache
def model_of(family):
    return tiny.build(family, "sdpa", torch.float64)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_model_merges_what_the_rounds_say_of_its_embeddings(family):
    """Oracle: the rounds by hand on the embeddings that the unwrapped model hands to its decoder."""
    model, inputs = model_of(family), tiny.batch(family, "one")
    x = oracle.embeddings(model, inputs)[0][tiny.visual(inputs)[0]]
    with vtprune.pruned(model, "tome", keep_ratio=0.3) as report:
        assert tiny.greedy(model, inputs, 3).sequences.shape[1] >= 3
        [site] = report.sites
        expected = by_hand(x.tolist(), round(0.3 * len(x)))
        assert site.kept[0].tolist() == [row for row, _ in expected]
        assert report.positions == ("compact" if family == "llava" else "original")


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_batch_is_its_samples(family):
    """Oracle: every sample alone."""

    def run(inputs):
        with vtprune.pruned(model_of(family), "tome", keep_ratio=0.4) as report:
            logits = oracle.text_logits(model_of(family), inputs)
            assert all(after < before for before, after in report.tokens)
        return logits

    oracle.assert_batch_equals_rows(run, family, tiny.samples(family, "ragged"))
