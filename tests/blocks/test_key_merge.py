"""Merging by keys, against the rules spelt out in plain Python."""

import pytest
import torch

from vtprune.blocks import key_merge
from vtprune.blocks.key_merge import neighbour_sums, neighbours, zip_rows


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def likest(key, i, n):
    """The n other rows of largest cosine to row i."""
    unit = key / key.norm(dim=1, keepdim=True)
    others = [j for j in range(len(key)) if j != i]
    return sorted(others, key=lambda j: -float(unit[i] @ unit[j]))[:n]


@pytest.mark.parametrize(("n", "count"), [(40, 32), (9, 32), (1, 3), (20, 1)])
def test_neighbours_are_the_others_with_the_likest_keys(n, count, monkeypatch):
    """Oracle: ``likest``; blocks of two centres at a time. A row is no neighbour of its own."""
    monkeypatch.setattr(key_merge, "BLOCK", 2)
    key, centres = noise(n, 6), torch.arange(0, n, 3)
    found = neighbours(key, centres, count)
    assert found.tolist() == [likest(key, i, count) for i in centres.tolist()]
    assert found.shape[1] == min(count, n - 1)


def test_neighbours_of_equal_rows_are_the_lowest():
    assert neighbours(torch.zeros(5, 3), torch.tensor([0, 4]), 2).tolist() == [[1, 2], [0, 1]]
    assert neighbours(torch.ones(5, 3).half(), torch.tensor([1]), 9).tolist() == [[0, 2, 3, 4]]


@pytest.mark.parametrize("rest_too", [True, False])
def test_sums_are_the_formula(rest_too):
    """Oracle: x_c + sum of a_j x_j over the neighbours, and the sum of a_j x_j over all that are no centres."""
    x, key, weight, centres = noise(12, 4), noise(12, 5, seed=1), noise(12, seed=2).exp(), torch.tensor([7, 2])
    sums = neighbour_sums(weight, key, centres, 3, rest_too)
    found = torch.zeros(len(sums.slots), 4).double().index_add_(0, sums.out, sums.weight[:, None] * x[sums.source])
    expected = [x[c] + sum(weight[j] * x[j] for j in likest(key, c, 3)) for c in centres.tolist()]
    if rest_too:
        expected.append(sum(weight[j] * x[j] for j in range(12) if j not in (2, 7)))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=1e-6)
    assert sums.slots.tolist() == ([7, 2, 11] if rest_too else [7, 2])


def test_anchors_are_evenly_spaced_and_the_others_join_the_likest():
    """Dominant 4 and 5; of the rest 0, 1, 2, 3, 6 every second is an anchor; row 3 has the key of 6, which is none."""
    key = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [-1, 0.1], [5, 5], [5, 5], [-1, 0]])
    score = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.5, 0.5, 0.1])
    found = zip_rows(score, key, 2, 2)
    assert found.dominant.tolist() == [4, 5] and found.anchors.tolist() == [0, 2]
    assert found.rest.tolist() == [1, 3, 6] and found.to.tolist() == [0, 1, 1]
    x = torch.arange(7.0)[:, None]
    assert found.anchored(x, "add").tolist() == [[1.0], [2 + 4.5]]
    assert found.anchored(x, "mean").flatten().tolist() == pytest.approx([0.5, 11 / 3])


def test_an_anchor_that_nobody_joins_stays_as_it_is():
    found = zip_rows(torch.zeros(4), torch.eye(4), 0, 4)
    assert found.anchors.tolist() == [0, 1, 2, 3] and not len(found.rest)
    for how in ("add", "mean"):
        assert torch.equal(found.anchored(torch.eye(4), how), torch.eye(4))
    none = zip_rows(torch.zeros(4), torch.eye(4), 1, 0)
    assert none.rest.tolist() == [1, 2, 3] and none.anchored(torch.eye(4), "add").shape == (0, 4)


@pytest.mark.parametrize(("dominant", "contextual", "keys"), [(-1, 1, 4), (5, 0, 4), (1, -1, 4), (1, 1, 3)])
def test_counts_that_do_not_fit_are_refused(dominant, contextual, keys):
    with pytest.raises(ValueError, match=f"{keys} keys cannot give {dominant} dominant and {contextual} contextual"):
        zip_rows(torch.zeros(4), torch.eye(keys), dominant, contextual)
