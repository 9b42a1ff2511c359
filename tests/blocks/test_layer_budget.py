"""The layer budget, against worked numbers and a walk through the layers."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vtprune.blocks.layer_budget import required


@pytest.mark.parametrize(
    ("sparsity", "keep_ratio", "n_layers", "expected"),
    [
        ([], 0.3, 28, 0.7),
        ([0.4], 0.3, 28, 0.5185),
        ([0.4, 0.2], 0.3, 28, 0.4135),
        ([0.9], 0.3, 28, 0),
        ([0.5], 0.3, 28, 0.4148),
        ([0.5, 0], 0.3, 28, 0.4308),
        # one layer of 4 had everything, the 3 others share 0.2 layers' worth
        ([0.0], 0.3, 4, 1 - 0.2 / 3),
        ([], 1.0, 28, 0),
        # nothing was spent too much, and no layer is left
        ([0.8, 0.5], 0.3, 2, 0),
        ([0.5] * 30, 0.3, 28, 0),
    ],
)
def test_worked_numbers(sparsity, keep_ratio, n_layers, expected):
    assert required(sparsity, keep_ratio, n_layers) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("sparsity", "keep_ratio", "n_layers"), [([0.0] * 10, 0.3, 28), ([0.1], 0.2, 4), ([0.0, 0.0], 0.5, 3)]
)
def test_more_than_the_budget_was_spent(sparsity, keep_ratio, n_layers):
    assert required(sparsity, keep_ratio, n_layers) is None


@given(st.lists(st.floats(0, 0.9), max_size=6), st.floats(0.01, 1), st.integers(1, 40))
def test_dropping_it_makes_the_mean_over_the_layers(sparsity, keep_ratio, n_layers):
    """Oracle: the tokens that every layer sees, layer by layer."""
    assume(len(sparsity) < n_layers)
    drop = required(sparsity, keep_ratio, n_layers)
    share, seen = 1.0, []
    for dropped in [*sparsity, drop or 0.0]:
        share -= share * dropped
        seen.append(share)
    seen += [share] * (n_layers - len(seen))
    mean = sum(seen) / n_layers
    if drop is None:
        assert sum(seen[: len(sparsity)]) > n_layers * keep_ratio
    elif drop == 0:
        assert mean <= keep_ratio + 1e-9
    else:
        assert 0 < drop <= 1 and mean == pytest.approx(keep_ratio, abs=1e-9)
