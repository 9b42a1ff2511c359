"""CAOTE, against removing entries one by one."""

import pytest
import torch

from tests.cache_scores.cases import random_attention
from vtprune.cache_scores.caote import caote, output_change
from vtprune.cache_scores.probe import causal, probe_rows


def removed(row, values):
    """The change of the output as each entry goes and the others are scaled to sum 1 again, in float64."""
    row, values = row.double() / row.double().sum(), values.double()
    change = []
    for j in range(len(row)):
        rest = torch.cat([row[:j], row[j + 1 :]])
        # the sum of the others, not what is missing to 1
        without = (rest / rest.sum()) @ torch.cat([values[:j], values[j + 1 :]])
        change.append((without - row @ values).norm())
    return torch.stack(change)


def test_worked_example():
    """Oracle: by hand; the entry of little attention matters as much as the one of most, whose value is not its own."""
    a, v = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    torch.testing.assert_close(output_change(a, v)[0], torch.tensor([0.2828427, 0.1212183, 0.2828427]))
    fast = output_change(a, v, fast=True)[0]
    far = torch.tensor([2**0.5 / 3, 2**0.5 / 3, (4 / 9 + 4 / 9) ** 0.5])
    torch.testing.assert_close(fast, torch.tensor([1.0, 3 / 7, 0.25]) * far)


@pytest.mark.parametrize("factor", [1.0, 7.0])
def test_it_is_the_change_of_the_output(factor):
    """Oracle: removing one entry after the other; attention that sums to 1 and that does not, to 1e-6."""
    attention = random_attention(6, 12)
    attention[1] = random_attention(12, seed=5) ** 4
    values = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    change = output_change(attention * factor, values).double()
    for row, found in zip(attention, change):
        torch.testing.assert_close(found, removed(row, values), rtol=1e-5, atol=1e-6)


def test_values_that_are_alike_are_told_apart():
    """Oracle: removing, in float64; squares of such values have no digits left for their differences."""
    values = 100 + 0.01 * torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    row = random_attention(30)
    torch.testing.assert_close(output_change(row[None], values)[0].double(), removed(row, values), rtol=0.05, atol=1e-5)


@pytest.mark.parametrize("rest", [1e-3, 1e-6, 1e-9, 1e-30])
def test_an_entry_that_has_nearly_everything_matters_most(rest):
    """Oracle: removing it, in float64; 1 - a has no digits left in float32."""
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    row = torch.tensor([rest, 1.0, rest / 2, 0.0])
    found = output_change(row[None], values)[0].double()
    torch.testing.assert_close(found, removed(row, values), rtol=1e-4, atol=1e-6)
    assert found.argmax() == 1


def test_extremes():
    """One entry has everything: without it nothing is left. A row of zeros, an entry that is the output."""
    values = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert output_change(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), values).tolist() == [[5, 0], [0, 0]]
    assert output_change(torch.ones(1, 1), values[:1]).tolist() == [[5]]
    same = output_change(random_attention(2, 6), torch.full((6, 3), 0.7))
    assert bool((same.abs() < 1e-6).all())
    middle = torch.tensor([[1.0, 0], [0, 1], [0.5, 0.5]])
    assert output_change(torch.tensor([[0.25, 0.25, 0.5]]), middle)[0].argmin() == 2


@pytest.mark.parametrize("fast", [False, True])
def test_queries_heads_and_padding(fast):
    """Oracle: each row of each head of each sample alone; what padding holds is NaN, and one query sees nothing."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, h, m, 8, generator=generator) for h, m in ((6, 4), (2, 15)))
    values = torch.randn(2, 2, 15, 5, generator=generator)
    valid = torch.ones(2, 15, dtype=torch.bool)
    valid[1, :3] = False
    k[1, :, :3], values[1, :, :3] = torch.nan, torch.nan
    rows = torch.arange(11, 15).repeat(2, 1)
    rows[1, 0], q[1, :, 0] = -1, torch.nan
    visible = causal(rows, torch.arange(15), valid=valid)
    found = caote(q, k, values, scale=0.4, visible=visible, fast=fast)
    paid = probe_rows(q, k, scale=0.4, visible=visible)
    assert bool((found[1, :, :3] == 0).all())
    for b, first, used in ((0, 0, slice(0, 4)), (1, 3, slice(1, 4))):
        for h in range(2):
            v = values[b, h, first:].double()
            each = [
                row / (1 - row) * (v.mean(0) - v).norm(dim=-1) if fast else removed(row, v)
                for row in paid[b, 3 * h : 3 * h + 3, used, first:].flatten(0, 1).double()
            ]
            expected = torch.stack(each).mean(0)
            torch.testing.assert_close(found[b, h, first:].double(), expected, rtol=1e-4, atol=1e-6)
