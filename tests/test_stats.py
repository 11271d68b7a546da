"""Known answers: scipy where it has the quantity, hand-made cases where it has not."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lewm.stats import (
    bootstrap,
    bootstrap_mean,
    mcnemar,
    p_value,
    paired,
    pearson,
    r2,
    ranks,
    rate_with_interval,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 10), (1, 10), (7, 10), (10, 10), (190, 200), (1, 1)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_agrees_with_scipy(successes, n, confidence):
    expected = scipy_stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_wilson_stays_within_a_rate_and_is_no_point_at_the_ends():
    low, high = wilson(0, 200)
    assert low == 0.0
    assert 0.01 < high < 0.03
    low, high = wilson(200, 200)
    assert high == 1.0
    assert 0.97 < low < 0.99


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match=r"trial|successes"):
        wilson(successes, n)


def test_pearson_and_r2_agree_with_scipy_and_by_hand():
    generator = np.random.default_rng(0)
    x = generator.normal(size=500)
    y = 3 * x + generator.normal(size=500) + 7
    assert pearson(x, y) == pytest.approx(scipy_stats.pearsonr(x, y).statistic, abs=1e-12)
    assert pearson(x, -2 * x + 1) == pytest.approx(-1)
    assert r2(x, x) == 1
    assert r2(np.full(500, y.mean()), y) == pytest.approx(0)
    assert r2(np.array([0.0, 0.0]), np.array([1.0, 3.0])) == pytest.approx(1 - (1 + 9) / 2)


def test_pearson_of_a_constant_is_undefined_rather_than_zero():
    assert np.isnan(pearson(np.ones(5), np.arange(5.0)))
    assert np.isnan(r2(np.arange(5.0), np.ones(5)))


def test_pearson_survives_float32_with_a_large_offset():
    x = np.arange(1000, dtype=np.float32) + 1e6
    assert pearson(x, x) == pytest.approx(1, abs=1e-12)


def test_correlations_refuse_mismatched_or_empty_input():
    with pytest.raises(ValueError, match="one shape"):
        pearson(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="one shape"):
        r2(np.ones((0,)), np.ones((0,)))
    with pytest.raises(ValueError, match="one variable"):
        pearson(np.ones((3, 2)), np.ones((3, 2)))


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        values = np.repeat(generator.normal(size=40), 5)  # 40 episodes of 5 identical frames
        low, high = bootstrap(
            np.mean, values, groups=np.repeat(np.arange(40), 5), draws=200, seed=trial
        )
        covered += low <= 0 <= high
    assert covered >= 86  # 95 expected; resampling frames instead of episodes covers about 60


def test_bootstrap_keeps_groups_whole_wherever_their_rows_are():
    generator = np.random.default_rng(2)
    values, groups = generator.normal(size=60), np.repeat(np.arange(6), 10)
    shuffled = generator.permutation(60)
    seen = []

    def record(x, g):
        seen.append(g)
        return x.mean()

    bootstrap(record, values[shuffled], groups[shuffled], groups=groups[shuffled], draws=20)
    for g in seen:
        assert len(g) == 60
        assert (np.bincount(g, minlength=6) % 10 == 0).all()


def test_bootstrap_is_seeded_and_checks_its_rows():
    x, groups = np.random.default_rng(3).normal(size=50), np.arange(50) // 5
    assert bootstrap(np.mean, x, groups=groups, seed=4) == bootstrap(
        np.mean, x, groups=groups, seed=4
    )
    assert bootstrap(np.mean, x, groups=groups, seed=4) != bootstrap(
        np.mean, x, groups=groups, seed=5
    )
    with pytest.raises(ValueError, match="lengths"):
        bootstrap(np.mean, x[:-1], groups=groups)
    with pytest.raises(ValueError, match="lengths"):
        bootstrap(np.mean, x[:0], groups=groups[:0])


@pytest.mark.parametrize("groups", [np.arange(60) // 7, np.zeros(60), np.arange(60)[::-1]])
def test_the_bootstrap_of_a_mean_is_the_general_one_of_the_mean(groups):
    values = np.random.default_rng(5).random(60) < 0.7
    for seed in (0, 1):
        assert bootstrap_mean(values, groups, draws=200, seed=seed) == pytest.approx(
            bootstrap(np.mean, values, groups=groups, draws=200, seed=seed), abs=1e-12
        )
    with pytest.raises(ValueError, match="lengths"):
        bootstrap_mean(values[:-1], groups)


@pytest.mark.parametrize(
    ("a", "b"), [(0, 0), (1, 0), (3, 3), (5, 4), (0, 6), (17, 5), (400, 330), (2000, 1)]
)
def test_mcnemar_is_the_exact_binomial_test(a, b):
    expected = scipy_stats.binomtest(a, a + b).pvalue if a + b else 1
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_refuses_impossible_counts():
    with pytest.raises(ValueError, match="at least 0"):
        mcnemar(3, -1)


def test_p_values_are_written_as_people_read_them():
    assert [p_value(p) for p in (1.0, 0.04967, 0.001, 0.00099, 0.0)] == [
        "1.000",
        "0.050",
        "0.001",
        "<0.001",
        "<0.001",
    ]


def test_rates_are_written_with_their_interval():
    assert rate_with_interval(0.945, *wilson(189, 200)) == "94.5% [90.4%, 96.9%]"


def test_paired_methods_by_hand():
    first, second = np.array([1, 1, 1, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 1, 0, 0, 0])
    found = paired(first, second, groups=np.arange(8) // 2)
    assert (found.attempts, found.episodes, found.only_first, found.only_second) == (8, 4, 5, 1)
    assert found.difference == pytest.approx((5 - 1) / 8)
    assert found.p == pytest.approx(2 * (1 + 6) / 2**6)
    # Per episode the differences sum to 2, 0, 0, 2 of 2 each: four drawn anew average between 0 and
    # 1.
    assert (found.low, found.high) == (0, 1)
    assert found.better == 0


def test_better_needs_test_interval_and_enough_episodes():
    always, never = np.ones(40, bool), np.zeros(40, bool)
    assert paired(always, never, np.arange(40)).better == 1
    assert paired(never, always, np.arange(40)).better == -1
    assert paired(always, never, np.arange(40) // 5).better == 0, "eight episodes"
    assert paired(always, never, np.arange(40) // 4).better == 1, "ten"
    # All 12 wins are one episode's: attempt by attempt p is tiny, and drawing episodes anew the
    # difference may vanish.
    once = np.repeat([True, False], [12, 28])
    lucky = paired(once, never, np.where(once, 0, np.arange(40)))
    assert lucky.p < 0.001
    assert lucky.better == 0


def test_the_verdict_errs_no_more_often_than_it_says():
    """Two methods alike, attempts of one episode much alike: where McNemar's test alone is fooled
    too often."""
    generator, fooled, erred = np.random.default_rng(6), 0, 0
    for _ in range(300):
        difficulty = np.repeat(generator.random((2, 20)) < 0.5, 10, axis=1)
        found = paired(*(difficulty ^ (generator.random((2, 200)) < 0.1)), np.arange(200) // 10)
        fooled += found.p < 0.05
        erred += found.better != 0
    assert erred <= 0.12 * 300 < fooled


@pytest.mark.parametrize(
    "values",
    [
        np.array([3.0, 1.0, 2.0]),
        np.array([2.0, 2.0, 1.0, 2.0, -0.0, 0.0]),
        np.array([5]),
        np.random.default_rng(0).integers(9, size=200),
        np.random.default_rng(1).normal(size=200).astype(np.float32),
        np.array([1.0, np.inf, -np.inf, np.inf]),
        np.array([1.0, np.nan, 2.0]),
    ],
)
def test_ranks_are_those_of_scipy_to_the_bit(values):
    np.testing.assert_array_equal(ranks(values), scipy_stats.rankdata(values))
