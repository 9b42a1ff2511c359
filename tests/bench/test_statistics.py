"""Intervals and tests against scipy, enumeration of all samples, worked examples and simulated coverage."""

import itertools

import numpy as np
import pytest
from scipy import stats

from vtprune.bench import statistics
from vtprune.bench.mcnemar import mcnemar
from vtprune.bench.statistics import bootstrap, clustered, mean_interval, retained, score_interval, verdict, wilson


def test_clusters_are_numbered_by_name():
    assert clustered(["b", "a", "b", "c"]).tolist() == [1, 0, 1, 2]


def test_bootstrap_against_all_samples_of_three_clusters():
    """Oracle: the 27 equally likely samples of three clusters of unequal size, enumerated."""
    values, clusters = np.array([1.0, 0.0, 0.5, 1.0, 0.25, 0.0]), np.array([0, 0, 1, 2, 2, 2])
    groups = [values[clusters == c] for c in range(3)]
    every = [np.concatenate([groups[c] for c in draw]).mean() for draw in itertools.product(range(3), repeat=3)]
    draws = bootstrap(values[:, None], clusters, lambda means: means[:, 0])
    assert draws.shape == (statistics.DRAWS,)
    expected = {round(mean, 9): every.count(mean) / 27 for mean in every}
    found = {round(mean, 9): n / len(draws) for mean, n in zip(*np.unique(draws, return_counts=True))}
    assert found.keys() <= expected.keys()
    assert all(abs(found.get(mean, 0) - share) < 0.04 for mean, share in expected.items())


def test_weights_in_parts_draw_what_one_part_draws(monkeypatch):
    """Oracle: the same figure where all weights are held at once; the parts come from the same stream."""
    random = np.random.default_rng(3)
    values, clusters = random.random((40, 2)), random.permutation(np.repeat(np.arange(10), 4))
    whole = bootstrap(values, clusters, lambda means: means[:, 1] - means[:, 0])
    monkeypatch.setattr(statistics, "CACHED", 35)
    np.testing.assert_allclose(bootstrap(values, clusters, lambda means: means[:, 1] - means[:, 0]), whole)


def test_interval_against_scipy_where_every_question_is_a_cluster():
    values = np.random.default_rng(1).random(60)
    low, high = mean_interval(values, np.arange(60))
    other = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=2).confidence_interval
    assert (low, high) == pytest.approx((other.low, other.high), abs=0.006)


def test_clusters_widen_an_interval_and_cover():
    """Oracle: the known mean of made-up clusters; the interval that ignores them misses far more often."""
    random, covered, naive, rounds = np.random.default_rng(4), 0, 0, 120
    for _ in range(rounds):
        values = np.repeat(random.normal(size=60), 5) + 0.1 * random.normal(size=300)
        low, high = mean_interval(values, np.repeat(np.arange(60), 5))
        covered += low <= 0 <= high
        low, high = mean_interval(values, np.arange(300))
        naive += low <= 0 <= high
    # 95 % of 120 is 114; three standard deviations are 7
    assert covered >= 105 and naive < 90


def test_same_answers_same_interval():
    values, clusters = np.random.default_rng(5).random(30), np.repeat(np.arange(10), 3)
    assert mean_interval(values, clusters) == mean_interval(values, clusters)


def test_one_cluster_has_no_interval():
    scores, one = np.array([1.0, 0.0, 1.0]), np.zeros(3, dtype=int)
    assert mean_interval(scores, one) is None and verdict(None) == "no interval"
    assert score_interval(scores, one) == (None, "one cluster: no interval")
    assert score_interval(scores[:0], one[:0])[0] is None


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (10, 10), (263, 1000)])
def test_wilson_against_scipy(right, n):
    other = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((other.low, other.high), abs=1e-12)


def test_how_the_interval_of_a_score_is_found():
    hits = np.array([1.0] * 7 + [0.0] * 3)
    assert score_interval(hits, np.arange(10)) == (wilson(7, 10), "Wilson")
    assert score_interval(hits, np.arange(10) // 2)[1] == "clusters resampled"
    # partial credit is no trial
    assert score_interval(hits * 0.6, np.arange(10))[1] == "clusters resampled"
    # ten right answers about five pictures are not ten trials, and not certain
    interval, how = score_interval(np.ones(10), np.arange(10) // 2)
    assert interval == wilson(5, 5) and "clusters" in how


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 3), (5, 14), (121, 59), (400, 480)])
def test_mcnemar_exact_against_scipy(b, c):
    test = mcnemar(b, c)
    p = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    mid = 2 * stats.binom.cdf(min(b, c), b + c, 0.5) - stats.binom.pmf(b, b + c, 0.5) if b + c else 1.0
    assert (test.p, test.mid_p, test.test) == (pytest.approx(p), pytest.approx(mid), "exact")


def test_mcnemar_worked_example():
    """Airways of 21 children in Fagerland, Lydersen and Laake (2013): 1 and 7 changed; exact 0.070, mid-p 0.039."""
    test = mcnemar(1, 7)
    assert (round(test.p, 3), round(test.mid_p, 3)) == (0.070, 0.039)


@pytest.mark.parametrize(("b", "c"), [(700, 700), (700, 701), (600, 700), (2000, 1800)])
def test_mcnemar_of_many_against_scipy(b, c):
    test = mcnemar(b, c)
    chi = max(0, abs(b - c) - 1) ** 2 / (b + c)
    assert (test.p, test.mid_p, test.test) == (pytest.approx(stats.chi2.sf(chi, 1)), None, "chi-squared")
    assert test.p == pytest.approx(stats.binomtest(b, b + c, 0.5).pvalue, abs=0.01)


def test_retained_gain():
    """Oracle: full 0.9, blind 0.5, pruned 0.8 is three quarters, and the interval shrinks with more clusters."""

    def scores(right, n):
        return np.random.default_rng(right).permutation(np.arange(n) < right * n // 10).astype(float)

    wide = retained(scores(8, 200), scores(9, 200), scores(5, 200), np.arange(200))
    narrow = retained(scores(8, 2000), scores(9, 2000), scores(5, 2000), np.arange(2000))
    assert wide["value"] == pytest.approx(0.75) and narrow["value"] == pytest.approx(0.75)
    assert wide["interval"][0] < narrow["interval"][0] < 0.75 < narrow["interval"][1] < wide["interval"][1]
    # the delta method, independent columns: sd of the ratio from the variances of the three means
    variance = (0.8 * 0.2 + 0.75**2 * 0.9 * 0.1 + 0.25**2 * 0.5 * 0.5) / 2000 / 0.4**2
    assert narrow["interval"][1] - narrow["interval"][0] == pytest.approx(2 * 1.96 * variance**0.5, rel=0.12)


def test_nothing_to_retain_is_said():
    hits, half = np.ones(10), np.array([1.0, 0.0] * 5)
    assert retained(hits, half, half, np.arange(10)) == {
        "value": None,
        "interval": None,
        "why": "full does not score above blind",
    }
    barely = half.copy()
    barely[1] = 1.0
    shaky = retained(half, barely, half[::-1], np.arange(10))
    assert shaky["value"] == 0 and shaky["interval"] is None and "of samples" in shaky["why"]
    assert retained(half, hits, half, np.zeros(10, dtype=int))["interval"] is None


def test_verdicts():
    assert [verdict(pair) for pair in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.0))] == [
        "better",
        "worse",
        "not told apart",
        "not told apart",
    ]
