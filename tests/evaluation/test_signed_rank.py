import numpy as np
import pytest
from scipy.stats import wilcoxon

from medseg.evaluation import holm, signed_rank_p


@pytest.mark.parametrize("n", [3, 8, 13, 14, 30, 60])
def test_p_equals_scipys_exact_test_without_ties(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.4, 1, n)
    assert signed_rank_p(differences) == pytest.approx(wilcoxon(differences).pvalue)


def test_ties_by_hand() -> None:
    """|d| = 1, 1, 2 have ranks 1.5, 1.5, 3; of the 8 signs only all-plus and all-minus sum to 6."""
    assert signed_rank_p([1, 1, 2]) == 2 / 8
    assert signed_rank_p([1, -1, 2]) == 6 / 8  # sums of 3 or more: ±6, ±3 twice
    assert signed_rank_p([0, 0, 1, 1, 2]) == 2 / 8


def test_ties_equal_scipys_permutation() -> None:
    differences = np.array([0.1, 0.1, 0.2, -0.1, 0.3, 0.2])
    assert signed_rank_p(differences) == pytest.approx(wilcoxon(differences).pvalue)


def test_no_difference_is_no_evidence() -> None:
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
