"""Budgets of layers by shares of attention, against released counts, a worked example and all other budgets."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.cache_scores.cases import asked, cases
from vtprune.cache_scores.decode_slot import fixed_slot, forgotten
from vtprune.cache_scores.keep import between, keep_best
from vtprune.cache_scores.prefix import PUBLISHED_TOLERANCE, counts_of, mean_fractions, prefix_drops
from vtprune.cache_scores.probe import causal, received

EXAMPLE = torch.tensor([[8, 1, 1, 0.01, 0.01, 0.01, 0.01, 0.01], [1.0] * 8])


def test_released_budgets_are_met(golden):
    """Oracle: the authors' code: scores, counts, who stays, slots and lengths in decode steps."""
    found = cases(golden("prefixkv"))
    assert found
    for stored in found:
        layers, n = stored["attn_headmean"].shape[:2]
        place = torch.arange(n)
        q, k = asked(stored["attn_headmean"][:, None])
        score = received(q, k, scale=1.0, visible=causal(place, place.expand(layers, -1)), heads="all")
        torch.testing.assert_close(score, stored["score_sum"], rtol=1e-4, atol=1e-5)
        start, tail = stored["start_size"], stored["protect_size"]
        drops = prefix_drops(score, 1 - stored["ratio_dropped"], protect=start + tail, tolerance=PUBLISHED_TOLERANCE)
        assert list(drops.raw) == stored["raw_drop_counts"].tolist()
        torch.testing.assert_close(torch.tensor(drops.fractions), stored["drop_fracs"], rtol=0, atol=1e-7)
        kept = [n - count for count in drops.counts]
        assert kept == stored["kept_counts"].tolist()
        offline = counts_of(mean_fractions([drops.fractions]), [n] * layers)
        assert [n - count for count in offline] == stored["kept_counts_offline"].tolist()
        middle = between(n, start, tail)
        for row, count, expected in zip(score, drops.counts, stored["kept_idx"].tolist()):
            assert keep_best(row, n - start - tail - count, middle).tolist() == [i for i in expected if i >= 0]
        assert [fixed_slot(k, stored["distance"]) for k in kept] == stored["decode_evict_slot"].tolist()
        before = stored["lens_before_decode_evict"].tolist()
        after = [length - min(1, forgotten(length, n + 1, f)) for length, f in zip(before, drops.fractions)]
        assert after == stored["lens_after_decode_evict"].tolist()


def test_worked_example():
    """Oracle: by hand; the bisection ends at once and is scaled, the exact counts sum to what was asked for."""
    drops = prefix_drops(EXAMPLE, 0.5, tolerance=5)
    assert (drops.raw, drops.counts, drops.threshold) == ((7, 4), (5, 2), 0.5)
    assert drops.fractions == (5 / 8, 2 / 8)
    drops = prefix_drops(EXAMPLE, 0.5)
    assert drops.counts == drops.raw == (7, 1)
    assert 0.75 < drops.threshold < 0.8


def test_the_search_ends_within_its_tolerance():
    """Oracle: by hand, of equal scores: at half of the mass 8 go, 5 more than asked for; then 4. And a sum that is met
    is not lowered, though 40 * (1 - 0.8) is a hair below 8."""
    drops = prefix_drops(torch.ones(1, 16), 13 / 16, tolerance=5)
    assert (drops.raw, drops.counts, drops.threshold) == ((4,), (3,), 0.75)
    drops = prefix_drops(torch.ones(1, 40), 0.8, tolerance=1)
    assert drops.raw == drops.counts == (8,)


def shares_left(scores, counts, protect):
    """What the best entries of each layer have; beside them as many stay as are protected."""
    best = [sorted(row.double().tolist(), reverse=True) for row in scores]
    return [sum(row[: len(row) - count - protect]) / sum(row) for row, count in zip(best, counts)]


@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize("keep_ratio", [0.3, 0.55, 0.8])
def test_no_other_budget_leaves_the_poorest_layer_more(protect, keep_ratio):
    """Oracle: all budgets of the same sum, of layers of unequal length."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        scores = [torch.rand(n, generator=generator) ** (3 * i + 1) for i, n in enumerate((6, 5, 7))]
        drops = prefix_drops(scores, keep_ratio, protect=protect)
        total = sum(drops.counts)
        assert total == min(round(18 * (1 - keep_ratio)), 18 - 3 * (1 + protect))
        others = [c for c in product(*(range(n - protect) for n in (6, 5, 7))) if sum(c) == total]
        best = max(min(shares_left(scores, counts, protect)) for counts in others)
        assert min(shares_left(scores, drops.counts, protect)) == pytest.approx(best, abs=1e-12)


@given(
    st.integers(1, 4), st.integers(2, 9), st.integers(0, 2), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 9)
)
def test_counts_sum_up_and_grow_together(layers, n, protect, some, more, seed):
    """Oracle: the sum that was asked for; whoever drops more in all drops no less in any layer; scores that tie."""
    scores = torch.randint(0, 3, (layers, n), generator=torch.Generator().manual_seed(seed)).float()
    room = layers * max(0, n - 1 - protect)
    some, more = max(some, more), min(some, more)
    less, drops = (prefix_drops(scores, keep, protect=protect).counts for keep in (some, more))
    assert sum(drops) == min(room, round(round(layers * n * (1 - more), 6)))
    assert all(0 <= a <= b <= max(0, n - 1 - protect) for a, b in zip(less, drops))
    assert prefix_drops(scores, 1.0, protect=protect).counts == (0,) * layers
    bisected = prefix_drops(scores, more, protect=protect, tolerance=1)
    assert sum(bisected.counts) <= round(layers * n * (1 - more)) and len(bisected.fractions) == layers


def test_of_layers_alike_the_first_keep():
    assert prefix_drops(torch.ones(3, 4), 1 - 1 / 12).counts == (0, 0, 1)
    assert prefix_drops(torch.zeros(2, 4), 0.5).counts == (2, 2)


def test_profiles_are_means():
    assert mean_fractions([(0.2, 0.8), (0.4, 0.6)]) == pytest.approx((0.3, 0.7))
    assert counts_of((0.25, 0.75), (10, 10)) == (2, 8)
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        mean_fractions([(0.2,), (0.4, 0.6)])


def test_slots_that_decode_steps_free():
    """Oracle: by hand."""
    assert [fixed_slot(kept) for kept in (100, 27, 26, 25, 3)] == [75, 2, 1, 12, 1]
    assert [forgotten(length, 100, 0.5) for length in (49, 50, 51, 53)] == [0, 0, 1, 3]


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (EXAMPLE, {"keep_ratio": 0}, "keep_ratio.*got 0"),
        (EXAMPLE, {"keep_ratio": 0.5, "protect": -1}, "got -1"),
        (EXAMPLE[:, :0], {"keep_ratio": 0.5}, r"\(0,\)"),
    ],
)
def test_wrong_calls_are_refused_by_value(scores, options, message):
    with pytest.raises(ValueError, match=message):
        prefix_drops(scores, **options)
