"""Frame budgets, against the authors' numbers, sums done by hand, and plain loops."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.policies.golden import load
from vtprune.blocks.frame_budget import ascending_rows, cap_weights, even_budgets, frame_budgets, frame_weights

WORKED = torch.tensor([0.9, 0.3, 0.1])


def budgets_of(scores, total, sizes=None, exponent=2.0):
    return frame_budgets(frame_weights(torch.as_tensor(scores), exponent), total, sizes)


def test_budgets_of_the_golden_cases(golden):
    """Oracle: the authors' released code; versions 2 to 5 cap a frame at its cells."""
    paths = sorted(golden("quota").glob("*.npz"))
    assert paths
    for path in paths:
        case = load(path)
        sizes = None if path.stem.endswith("_v1") else [case["features"].shape[1]] * len(case["features"])
        budgets = budgets_of(case["probs"], int(case["total"] * case["per"]), sizes)
        kept = [i for i, n in enumerate(budgets) if n]
        assert kept == case["kept_frames"].tolist(), path.name
        assert [budgets[i] for i in kept] == case["budgets"].tolist(), path.name


def test_the_weights_of_the_golden_cases(golden):
    """Oracle: the raw weights that the authors' code made of the same scores."""
    for path in sorted(golden("quota").glob("*.npz")):
        case = load(path)
        expected = case["raw_weights"] / case["raw_weights"].sum()
        torch.testing.assert_close(frame_weights(case["probs"]), expected, rtol=1e-12, atol=0)


def test_the_worked_example():
    """Scores .9, .3, .1 and 36 tokens: squares .81, .09, .01 of .91."""
    weights = frame_weights(WORKED)
    assert weights.dtype == torch.float64
    torch.testing.assert_close(weights, torch.tensor([81, 9, 1]).double() / 91, rtol=1e-6, atol=0)
    assert frame_budgets(weights, 36) == [32, 3, 0]


def test_weights_that_nothing_tells_apart_are_uniform():
    for scores, exponent in ((torch.zeros(5), 2.0), (torch.full((5,), 0.3), 2.0), (torch.rand(5), 0)):
        torch.testing.assert_close(frame_weights(scores, exponent), torch.full((5,), 0.2).double())


def test_weights_survive_scores_whose_powers_leave_float64():
    """Oracle: the largest takes all, or half where there are two of them."""
    assert frame_weights(torch.tensor([1e300, 1e290, 0.0], dtype=torch.float64)).tolist() == [
        1,
        pytest.approx(0, abs=1e-15),
        0,
    ]
    tiny = frame_weights(torch.tensor([2e-200, 2e-200, 0.0], dtype=torch.float64))
    assert tiny.tolist() == [0.5, 0.5, 0]


def cap_by_loop(weights, most):
    """The pass as it is told, frame by frame."""
    excess = sum(max(w - most, 0) for w in weights)
    weights = [min(w, most) for w in weights]
    total = sum(weights)
    for i, w in enumerate(weights):
        if w < most:
            weights[i] = w + w / total * excess
            if weights[i] > most:
                excess += weights[i] - most
                weights[i] = most
    return weights


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=9), st.integers(1, 12))
def test_capping_hands_the_excess_on_in_one_pass(raw, parts):
    """Oracle: a plain loop over numbers."""
    weights = [r / sum(raw) for r in raw]
    got = cap_weights(
        torch.tensor(weights, dtype=torch.float64), torch.full((len(raw),), 1 / parts, dtype=torch.float64)
    )
    assert got.tolist() == pytest.approx(cap_by_loop(weights, 1 / parts), abs=1e-12)
    assert float(got.max()) <= 1 / parts


def test_capping_by_hand():
    """.1 over .4 is shared by .3 and .2 of .9 in all; then a second frame overflows and the third shares that too."""
    most = torch.full((3,), 0.4, dtype=torch.float64)
    got = cap_weights(torch.tensor([0.5, 0.3, 0.2]).double(), most)
    assert got.tolist() == pytest.approx([0.4, 0.3 + 0.3 / 0.9 * 0.1, 0.2 + 0.2 / 0.9 * 0.1])
    got = cap_weights(torch.tensor([0.6, 0.38, 0.02]).double(), most)
    assert got.tolist() == pytest.approx([0.4, 0.4, 0.02 + 0.02 / 0.8 * (0.2 + 0.075)])


def test_capping_leaves_weights_below_the_cap_alone():
    weights = torch.tensor([0.5, 0.3, 0.2]).double()
    assert torch.equal(cap_weights(weights, torch.full((3,), 0.5).double()), weights)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(1, 60), st.integers(1, 25))
def test_no_frame_gets_more_than_it_holds_and_all_together_not_more_than_the_budget(scores, total, size):
    budgets = budgets_of(torch.tensor(scores).double(), total, [size] * len(scores))
    assert len(budgets) == len(scores)
    assert all(0 <= n <= size for n in budgets)
    assert sum(budgets) <= total


# ------------------------------------------------------------------------------------------------- even budgets


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.data())
def test_even_budgets_give_out_everything_in_proportion(sizes, data):
    total = data.draw(st.integers(0, sum(sizes)))
    budgets = even_budgets(sizes, total)
    assert sum(budgets) == total
    for n, size in zip(budgets, sizes, strict=True):
        assert abs(Fraction(n) - Fraction(total * size, sum(sizes))) < 1
        assert 0 <= n <= size


def test_even_budgets_of_equal_frames():
    assert even_budgets([49] * 3, 147) == [49] * 3
    assert even_budgets([4] * 4, 6) == [1, 2, 1, 2]
    assert even_budgets([7] * 49, 49 * 7) == [7] * 49


# --------------------------------------------------------------------------------------------- ascending rows


def rows_by_loop(wanted, n):
    rows = list(wanted)
    for j in range(1, len(rows)):
        rows[j] = max(rows[j], rows[j - 1] + 1)
    last = n
    for j in reversed(range(len(rows))):
        rows[j] = last = min(rows[j], last - 1)
    return rows


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(0, 15))
def test_rows_are_pushed_apart_and_back_into_range(wanted, more):
    """Oracle: one pass forward and one backward, row by row."""
    n = max(len(wanted), 1) + more
    rows = ascending_rows(torch.tensor(wanted, dtype=torch.int64), n).tolist()
    assert rows == rows_by_loop(wanted, n)
    assert rows == sorted(set(rows)) and all(0 <= row < n for row in rows)


def test_rows_that_ascend_already_stay():
    assert ascending_rows(torch.tensor([0, 3, 4, 9]), 10).tolist() == [0, 3, 4, 9]


def test_more_tokens_than_rows_are_refused():
    with pytest.raises(ValueError, match=r"4 tokens .* 3 rows"):
        ascending_rows(torch.tensor([0, 1, 2, 3]), 3)
