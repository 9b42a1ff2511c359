"""Density peaks, against the formula in plain loops."""

import math

import pytest
import torch

from vtprune.blocks.density_peaks import distances, peak_scores


def by_formula(rows, neighbours):
    far = [[math.dist(a, b) / math.sqrt(len(a)) for b in rows] for a in rows]
    count = min(neighbours, len(rows))
    density = [math.exp(-sum(d * d for d in sorted(line)[:count]) / count) for line in far]
    top, score = max(map(max, far)), []
    for i, line in enumerate(far):
        score.append(density[i] * min((d for d, rho in zip(line, density) if rho > density[i]), default=top))
    return far, score


@pytest.mark.parametrize(("m", "width", "neighbours"), [(1, 3, 4), (2, 1, 1), (7, 5, 3), (40, 16, 7), (5, 8, 9)])
def test_scores_follow_the_formula(m, width, neighbours):
    """Oracle: loops over Python floats."""
    for seed in range(3):
        x = torch.randn(m, width, generator=torch.Generator().manual_seed(seed))
        far, score = by_formula(x.tolist(), neighbours)
        torch.testing.assert_close(distances(x), torch.tensor(far), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(peak_scores(distances(x), neighbours), torch.tensor(score), rtol=1e-5, atol=1e-6)


def test_by_hand():
    """Four rows on a line, two neighbours: 0 and 1 are equally dense and both are peaks; 4 stands apart from them."""
    x = torch.tensor([[0.0], [1.0], [4.0], [6.0]])
    e = math.exp(-0.5)
    expected = torch.tensor([6 * e, 6 * e, 3 * math.exp(-2), 2 * math.exp(-2)])
    scores = peak_scores(distances(x), 2)
    torch.testing.assert_close(scores[:2], expected[:2])
    # 4 and 6 are equally dense too, so the nearest denser row of 6 is 1
    torch.testing.assert_close(scores[2:], torch.tensor([3 * math.exp(-2), 5 * math.exp(-2)]))


def test_equal_rows_are_at_distance_0_and_nothing_is_nan():
    x = torch.full((30, 64), 100.3)
    assert bool((distances(x) == 0).all())
    assert peak_scores(distances(x), 4).tolist() == [0.0] * 30
    assert len(peak_scores(torch.zeros(0, 0), 4)) == 0


def test_what_is_no_matrix_of_pairs_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        peak_scores(torch.zeros(2, 3), 1)
    with pytest.raises(ValueError, match="0"):
        peak_scores(torch.zeros(2, 2), 0)
