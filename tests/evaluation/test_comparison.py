import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon

from medseg.errors import EvaluationError
from medseg.evaluation import LabelScore, Outcome, compare
from medseg.evaluation.comparison import Table, read_metrics_csv
from medseg.evaluation.metrics import DICE, HD95, Metric


def rows_of(values: dict[str, np.ndarray], metric: str = "dice", cases_per_patient: int = 1) -> list[LabelScore]:
    return [
        LabelScore(
            f"c{i:03d}", f"p{i // cases_per_patient:03d}", label, Outcome.DETECTED, "", 1, 1, 1, 1, {metric: float(v)}
        )
        for label, column in values.items()
        for i, v in enumerate(column)
    ]


def table_of(values: dict[str, np.ndarray], metric: str = "dice") -> Table:
    return {(row.case, row.label): row.values for row in rows_of(values, metric)}


def compared(this: dict[str, np.ndarray], other: dict[str, np.ndarray], metric: Metric = DICE) -> list:
    return compare(rows_of(this, metric.name), table_of(other, metric.name), [metric], 2000, 0)


def test_a_clear_improvement_wins() -> None:
    rng = np.random.default_rng(1)
    other = rng.uniform(0.7, 0.9, 40)
    this = other + rng.normal(0.03, 0.01, 40)
    (result,) = compared({"a": this}, {"a": other})
    assert result.verdict == "this is better"
    assert result.difference.value == pytest.approx((this - other).mean())
    assert result.difference.low > 0
    assert result.p == pytest.approx(wilcoxon(this - other).pvalue)
    assert compared({"a": other}, {"a": this})[0].verdict == "the other is better"


def test_smaller_distances_are_better() -> None:
    rng = np.random.default_rng(1)
    this = rng.uniform(2, 3, 40)
    assert compared({"a": this}, {"a": this + rng.uniform(0.5, 1, 40)}, HD95)[0].verdict == "this is better"


def test_no_winner_while_the_interval_contains_zero() -> None:
    rng = np.random.default_rng(2)
    other = rng.uniform(0.7, 0.9, 40)
    this = other + rng.normal(0.0, 0.05, 40)
    (result,) = compared({"a": this}, {"a": other})
    assert result.difference.low < 0 < result.difference.high
    assert result.verdict == "no winner"
    same = compared({"a": other}, {"a": other})[0]
    assert (same.p, same.verdict) == (1.0, "no winner")


def test_noise_seldom_has_a_winner() -> None:
    rng = np.random.default_rng(3)
    wins = 0
    for _ in range(100):
        other = {label: rng.normal(0.8, 0.05, 25) for label in "abc"}
        this = {label: values + rng.normal(0, 0.05, 25) for label, values in other.items()}
        wins += any(result.verdict != "no winner" for result in compared(this, other))
    assert wins <= 10  # of 100 tables of four comparisons; 5 are expected at most, 20 without Holm


def test_one_patient_cannot_make_a_winner() -> None:
    """Forty cases of two patients are two independent differences."""
    this, other = np.full(40, 0.9), np.full(40, 0.8)
    (result,) = compare(rows_of({"a": this}, cases_per_patient=20), table_of({"a": other}), [DICE], 2000, 0)
    assert (result.difference.n, result.difference.patients) == (40, 2)
    assert result.verdict == "no winner"


def test_class_mean_is_unweighted_and_absences_are_counted_apart() -> None:
    this = {"a": np.array([0.9] * 10), "b": np.array([0.5] * 4 + [math.nan] * 6)}
    other = {"a": np.array([0.8] * 10), "b": np.array([0.5] * 3 + [math.nan] + [0.0] * 2 + [math.nan] * 4)}
    a, b, mean = compared(this, other)
    assert (b.difference.n, b.one_sided) == (3, 3)
    assert mean.label == "class mean"
    assert mean.difference.value == pytest.approx((0.1 + 0.0) / 2)
    assert (mean.this, mean.other) == pytest.approx((0.7, 0.65))
    assert mean.difference.n == 10
    assert a.one_sided == 0


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(EvaluationError, match="in common"):
        compare(rows_of({"a": np.ones(3)}), {("x", "a"): {"dice": 1.0}}, [DICE], 2000, 0)


def test_an_earlier_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("case,label,dice,other\nc1,a,0.5,x\nc2,a,,y\n")
    table = read_metrics_csv(path)
    assert table["c1", "a"] == {"dice": 0.5}
    assert math.isnan(table["c2", "a"]["dice"])
    path.write_text("case,label,dice\nc1,a,good\n")
    with pytest.raises(EvaluationError, match="line 2"):
        read_metrics_csv(path)
    path.write_text("name,dice\nc1,0.5\n")
    with pytest.raises(EvaluationError, match="label"):
        read_metrics_csv(path)


@pytest.mark.parametrize("content", [b"\xff\xfe,case", b"", b"a,b\n1,2\n"])
def test_a_file_that_is_no_table_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(EvaluationError, match=r"metrics\.csv"):
        read_metrics_csv(tmp_path / "metrics.csv")
