"""Assigning and merging, against plain loops."""

import math

import pytest
import torch

from vtprune.blocks.assign import blends, kept, means, merge_matrix, nearest


@pytest.mark.parametrize("metric", ["cosine", "euclid"])
def test_the_nearest_centre(metric):
    """Oracle: a loop over Python floats."""
    x, centres = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0)).split([1990, 10])

    def near(a, b):
        if metric == "euclid":
            return -math.dist(a, b)
        return sum(p * q for p, q in zip(a, b)) / (math.hypot(*a) * math.hypot(*b))

    rows = centres.tolist()
    expected = [max(range(10), key=lambda j: near(a, rows[j])) for a in x.tolist()]
    assert nearest(x, centres, metric).tolist() == expected


def test_ties_go_to_the_first_centre_and_zeros_are_no_accident():
    x, centres = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert nearest(x, centres, "cosine").tolist() == [1, 0]
    assert nearest(x, centres, "euclid").tolist() == [1, 0]
    assert nearest(x[:0], centres, "cosine").tolist() == []
    for wrong in ((x, centres[:0], "cosine"), (x, centres[:, :1], "cosine"), (x, centres, "manhattan")):
        with pytest.raises(ValueError):
            nearest(*wrong)


def test_a_mean_a_blend_and_a_row_that_stays():
    """By hand; (1, 0) with (1, 0), (3, 0) and (2, 0) assigned at 0.6 is (1.4, 0)."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [0.0, 4.0], [0.0, 6.0], [5.0, 5.0]])
    row = torch.arange(7)
    blend = blends(row[:1], row[1:4], torch.tensor([0, 0, 0]), 0.6)
    mean = means(row[5:6], row[4:6], torch.tensor([0, 0]))
    keep, merge = merge_matrix([mean, kept(row[6:]), blend], 7)
    assert keep.tolist() == [0, 5, 6] and merge.shape == (3, 7)
    torch.testing.assert_close(torch.sparse.mm(merge, x), torch.tensor([[1.4, 0.0], [0.0, 5.0], [5.0, 5.0]]))


@pytest.mark.parametrize(("beta", "weight"), [(0.6, 0.6), (0.1, 1 / 3), (1.0, 1.0)])
def test_the_weight_of_an_anchor(beta, weight):
    """By hand: 1 / (2 + 1) unless beta is more; an anchor that is in its own pool counts twice; one alone stays."""
    both = blends(torch.tensor([0, 3]), torch.tensor([0, 1]), torch.tensor([0, 0]), beta)
    _, merge = merge_matrix([both], 4)
    rest = (1 - weight) / 2
    expected = torch.tensor([[weight + rest, rest, 0, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(merge.to_dense(), expected)
