"""Folding, against one token after the other."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from vtprune.blocks.fold import folded


def values(x, keep, halving):
    rows = torch.arange(len(x)) + 10
    part = folded(rows, x, torch.tensor(keep), halving)
    out = torch.zeros(len(x) + 10, len(x)).index_put_((part.place, part.source - 10), part.weight, accumulate=True)
    return out[rows[keep]] @ x


def test_worked_example():
    """Oracle: by hand; the first kept token gets two, in turn 3 and then 5."""
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    assert values(x, [0, 2], True).tolist() == [[3.5, 0.0], [0.0, 1.0]]
    assert values(x, [0, 2], False).tolist() == [[3.0, 0.0], [0.0, 1.0]]


@given(st.integers(2, 12), st.booleans(), st.data())
def test_folds_follow_one_another(n, halving, data):
    """Oracle: a loop over what goes, in order."""
    keep = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n)))
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 2**20))))
    slots = {k: (x[k].clone(), [x[k]]) for k in keep}
    for i in (i for i in range(n) if i not in keep):
        cosine = [float(torch.cosine_similarity(x[i], x[k], dim=0)) for k in keep]
        best = keep[cosine.index(max(cosine))]
        slots[best] = ((slots[best][0] + x[i]) / 2, [*slots[best][1], x[i]])
    expected = [running if halving else torch.stack(all_).mean(0) for running, all_ in slots.values()]
    torch.testing.assert_close(values(x, keep, halving), torch.stack(expected), rtol=0, atol=1e-5)


def test_nothing_goes_where_everything_is_kept():
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for halving in (True, False):
        assert torch.equal(values(x, [0, 1, 2], halving), x)
