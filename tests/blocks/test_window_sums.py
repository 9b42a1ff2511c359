"""What a window of frames becomes, by hand."""

import pytest
import torch

from vtprune.blocks.assign import Sums
from vtprune.blocks.window_sums import clustered, in_order


def dense(parts, n):
    out = torch.zeros(n, n)
    for part in parts:
        out.index_put_((part.place, part.source), part.weight, accumulate=True)
    return out


@pytest.mark.parametrize("beta", [None, 0.6])
def test_a_window_is_averaged_then_clustered(beta):
    """Oracle: means over frames, then clusters by hand: three places near 0, three near 9."""
    means = torch.tensor([0.0, 9.0, 0.1, 9.2, 9.5, 0.25])
    x = torch.stack([means - 1, means + 1])[..., None]
    rows = torch.tensor([[1, 2, 4, 6, 7, 9], [11, 12, 14, 16, 17, 19]])
    values = torch.zeros(20).index_put_((rows.flatten(),), x.flatten())
    found = dense([clustered(rows, x, 2, 3, beta)], 20)
    kept = found.sum(1).nonzero().flatten().tolist()
    assert len(kept) == 2 and set(kept) <= set(rows[0].tolist())
    for row in kept:
        members = [0.0, 0.1, 0.25] if row in (1, 4, 9) else [9.0, 9.2, 9.5]
        centre = float(means[rows[0].tolist().index(row)])
        others = [member for member in members if abs(member - centre) > 1e-3]
        expected = sum(members) / len(members) if beta is None else 0.6 * centre + 0.4 * sum(others) / len(others)
        assert float(found[row] @ values) == pytest.approx(expected, abs=1e-5)
    alone = clustered(rows[:, :1], x[:, :1], 1, 7, beta)
    assert float(dense([alone], 20)[1] @ values) == pytest.approx(0.0, abs=1e-6)
    assert not len(clustered(rows, x, 0, 7, beta).place)


def test_parts_may_stand_in_their_own_order():
    """Oracle: by hand; the static row 3 comes before the rows of the first frame."""
    parts = [
        Sums(*map(torch.tensor, ([3, 3], [3, 8], [0.5, 0.5]))),
        Sums(*map(torch.tensor, ([0, 2], [0, 2], [1.0, 1.0]))),
    ]
    assert torch.equal(dense(in_order(parts, "original"), 9), dense(parts, 9))
    found = in_order(parts, "static-first")
    assert [part.place.tolist() for part in found] == [[0, 0], [2, 3]]
    assert [part.source.tolist() for part in found] == [[3, 8], [0, 2]]
