"""Duplicates dropped round by round, against the rule spelt out in plain Python."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vtprune.blocks import duplicates
from vtprune.blocks.duplicates import drop_duplicates


def literal(features, order, n, step):
    """The rule, entry by entry; cosines of whole numbers in float64."""

    def cosine(i, j):
        a, b = features[i].double(), features[j].double()
        return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-300))

    order = list(order)
    while len(order) > n:
        even, odd = order[::2], order[1::2]
        likest = {i: max(cosine(i, j) for j in odd) for i in even}
        by_likeness = sorted(even, key=lambda i: -likest[i])
        order = by_likeness[min(step, len(order) - n, len(even)) :] + odd
    return order


@given(st.integers(1, 24), st.data())
def test_it_is_the_rule_spelt_out(n, data):
    """Whatever is odd or small. Oracle: ``literal``; the features are such that no two cosines are nearly equal."""
    features = torch.randn(n, 5, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    order = data.draw(st.permutations(range(n)))[: data.draw(st.integers(1, n))]
    left, step = data.draw(st.integers(0, len(order))), data.draw(st.integers(1, 9))
    found = drop_duplicates(features, torch.tensor(order), left, step).tolist()
    assert found == (literal(features, order, left, step) if left else [])


def test_worked_example():
    """Entries 0 and 3 are compared to 2 and 4, which they resemble, and go."""
    features = torch.tensor([[1, 0], [0, 1], [1, 0.1], [0.1, 1], [1, 1], [-1, 0]])
    assert drop_duplicates(features, torch.tensor([0, 2, 3, 4]), 2, 2).tolist() == [2, 4]


def test_equal_entries_go_from_the_first_on():
    """A tie goes to the earlier entry: all features are equal, so the first of those that are compared is dropped."""
    assert drop_duplicates(torch.ones(6, 3), torch.arange(6), 5, 1).tolist() == [2, 4, 1, 3, 5]
    assert drop_duplicates(torch.zeros(5, 3), torch.arange(5), 1, 8).tolist() == [3]


@pytest.mark.parametrize("all_pairs", [duplicates.ALL_PAIRS, 0])
@pytest.mark.parametrize("listed", [12, 3, 1])
def test_many_tokens_are_compared_by_lists(listed, all_pairs, monkeypatch):
    """Oracle: ``literal``; lists so short that many of those listed are gone, with and without a matrix of pairs."""
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1)).tolist()
    expected = literal(features, order, 7, 4)
    monkeypatch.setattr(duplicates, "LIST", listed)
    monkeypatch.setattr(duplicates, "ALL_PAIRS", all_pairs)
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    assert drop_duplicates(features, torch.tensor(order), 7, 4).tolist() == expected


@pytest.mark.parametrize(("n", "step"), [(-1, 8), (4, 8), (2, 0)])
def test_wrong_counts_are_refused(n, step):
    with pytest.raises(ValueError, match=f"got {n} and {step}"):
        drop_duplicates(torch.ones(3, 2), torch.arange(3), n, step)
