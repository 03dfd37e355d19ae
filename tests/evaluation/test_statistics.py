import math

import numpy as np
import pytest
from scipy import stats
from scipy.stats import wilcoxon

from medseg.evaluation import ClusterBootstrap, holm, median, signed_rank_p
from medseg.evaluation.statistics import patient_means


def names(count: int) -> list[str]:
    return [f"p{number:03d}" for number in range(count)]


def test_interval_of_independent_cases_equals_scipys() -> None:
    values = np.random.default_rng(0).beta(8, 2, 40)
    estimate = ClusterBootstrap(names(40), 20_000).mean(values, names(40))
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert estimate.value == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=0.002)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = []
    for seed in range(300):
        values = rng.normal(1.0, 0.3, 30)
        estimate = ClusterBootstrap(names(30), 2000, seed).mean(values, names(30))
        covered.append(estimate.low <= 1.0 <= estimate.high)
    assert 0.90 <= np.mean(covered) <= 0.98


def test_repeated_cases_of_a_patient_do_not_narrow_the_interval() -> None:
    """Each case ten times: the same interval when clustered by patient, a far narrower one when not."""
    values = np.random.default_rng(1).normal(size=25)
    once = ClusterBootstrap(names(25)).mean(values, names(25))
    tenfold = ClusterBootstrap(names(25)).mean(np.repeat(values, 10), list(np.repeat(names(25), 10)))
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))
    assert (tenfold.n, tenfold.patients) == (250, 25)
    independent = ClusterBootstrap(names(250)).mean(np.repeat(values, 10), names(250))
    assert independent.high - independent.low < 0.5 * (once.high - once.low)


def test_class_mean_is_unweighted_and_resampled_jointly() -> None:
    """Two classes that mirror each other: their mean never moves, though each of them does."""
    values = np.random.default_rng(2).normal(size=30)
    bootstrap = ClusterBootstrap(names(30))
    joint = bootstrap.mean_of_means([(values, names(30)), (-values, names(30))])
    assert (joint.low, joint.high) == pytest.approx((0, 0), abs=1e-12)
    rare = bootstrap.mean_of_means([(np.ones(30), names(30)), (np.zeros(1), ["p000"])])
    assert rare.value == 0.5


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(4).normal(size=22)
    first, again, other = (ClusterBootstrap(names(22), 2000, seed).mean(values, names(22)) for seed in (7, 7, 8))
    assert first == again != other


def test_values_that_do_not_count_do_not() -> None:
    estimate = ClusterBootstrap(names(3)).mean([1.0, math.nan, 3.0], names(3))
    assert (estimate.value, estimate.n, estimate.patients) == (2.0, 2, 2)
    nothing = ClusterBootstrap(names(2)).mean([math.nan, math.nan], names(2))
    assert math.isnan(nothing.value)
    assert nothing.n == 0
    alone = ClusterBootstrap(["a"]).mean([0.5], ["a"])
    assert alone.value == 0.5
    assert math.isnan(alone.low)


def test_few_patients_are_tagged_and_few_draws_refused() -> None:
    assert ClusterBootstrap(names(19)).mean(np.ones(19), names(19)).is_few
    assert not ClusterBootstrap(names(20)).mean(np.ones(20), names(20)).is_few
    with pytest.raises(ValueError, match="at least 2000"):
        ClusterBootstrap(names(3), 1999)


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (10, 2), (20, 6), (52, 19), (208, 90)])
def test_median_interval_takes_the_tabulated_order_statistics(n: int, rank: int) -> None:
    """Ranks of the 95 % interval as in tables of the sign test; checked against the binomial tail as well."""
    estimate = median(np.arange(1, n + 1), names(n))
    assert (estimate.low, estimate.high) == (rank, n + 1 - rank)
    assert stats.binom.cdf(rank - 1, n, 0.5) <= 0.025 < stats.binom.cdf(rank, n, 0.5)


def test_median_has_no_interval_below_six_patients() -> None:
    estimate = median([1, 2, 3, 4, 5], names(5))
    assert estimate.value == 3
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    assert median([], []).n == 0


def test_each_patient_enters_the_median_once() -> None:
    values, patients = [0.0, 0.0, 0.0, 0.0, 3.0, 5.0], ["a", "a", "a", "a", "b", "c"]
    assert median(values, patients).value == 3.0
    assert patient_means([1.0, 3.0, math.nan], ["a", "a", "b"]) == {"a": 2.0}


@pytest.mark.parametrize("n", [3, 8, 13, 14, 30, 60])
def test_p_equals_scipys_exact_test_without_ties(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.4, 1, n)
    assert signed_rank_p(differences) == pytest.approx(wilcoxon(differences).pvalue)


def test_ties_by_hand() -> None:
    """Absolute values 1, 1, 2 have ranks 1.5, 1.5, 3; only two of the 8 sign patterns sum to 6 or -6."""
    assert signed_rank_p([1, 1, 2]) == 2 / 8
    assert signed_rank_p([1, -1, 2]) == 6 / 8  # sums of 3 or more: ±6, ±3 twice
    assert signed_rank_p([0, 0, 1, 1, 2]) == 2 / 8


def test_ties_equal_scipys_permutation_test() -> None:
    differences = np.array([0.1, 0.1, 0.2, -0.1, 0.3, 0.2])
    assert signed_rank_p(differences) == pytest.approx(wilcoxon(differences).pvalue)


def test_without_differences_p_is_1() -> None:
    assert signed_rank_p([0.0, 0.0]) == signed_rank_p([]) == 1.0


def test_holm_by_hand() -> None:
    """m = 4: 0.01·4, 0.02·3, 0.03·2 raised to 0.06, 0.5·1."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_its_step_down_rule_rejects() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.random(6) ** 3
        rejected, order = set(), np.argsort(p)
        for rank, position in enumerate(order):  # the rule as Holm states it
            if p[position] > 0.05 / (6 - rank):
                break
            rejected.add(position)
        assert {i for i, corrected in enumerate(holm(p)) if corrected <= 0.05} == rejected
