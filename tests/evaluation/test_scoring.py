import math

import numpy as np
import pytest

from medseg.errors import EvaluationError
from medseg.evaluation import LabelScore, Outcome, score_case
from medseg.evaluation.metrics import image_diagonal_mm

LABELS = {"liver": 1, "spleen": 2}
SPACING = (1.0, 2.0, 2.5)


def cube(value: int, start: int, stop: int) -> np.ndarray:
    label_map = np.zeros((12, 10, 8), np.uint8)
    label_map[start:stop, 2:6, 2:6] = value
    return label_map


def liver(prediction: np.ndarray, reference: np.ndarray, **kwargs: object) -> LabelScore:
    return score_case(prediction, reference, SPACING, LABELS, **kwargs)[0]  # type: ignore[arg-type]


def test_overlapping_boxes_have_closed_form_scores() -> None:
    """Reference 4×4×4 voxels of 5 mm³, prediction 6×4×4 that holds it and reaches 2 mm further."""
    row = liver(cube(1, 2, 8), cube(1, 2, 6))
    assert row.outcome is Outcome.DETECTED
    assert row.values["dice"] == pytest.approx(2 * 64 / (64 + 96))
    assert row.values["precision"] == pytest.approx(64 / 96)
    assert row.values["recall"] == 1
    assert row.values["volume_difference_ml"] == pytest.approx(32 * 5 / 1000)
    assert row.values["volume_difference_percent"] == pytest.approx(50)
    assert row.reference_size == pytest.approx(0.32)
    assert row.values["hd95_mm"] == pytest.approx(2.0)
    assert row.raw == row.values


def test_both_empty_is_a_correct_absence_that_is_not_averaged() -> None:
    row = score_case(cube(1, 2, 6), cube(1, 2, 6), SPACING, LABELS)[1]
    assert row.outcome is Outcome.ABSENT
    assert all(math.isnan(value) for value in row.values.values())
    assert "absence" in row.reason


@pytest.mark.parametrize("is_missed", [True, False])
def test_one_empty_has_the_worst_values_and_keeps_the_raw_ones(is_missed: bool) -> None:
    empty, full = cube(1, 0, 0), cube(1, 2, 6)
    row = liver(empty, full) if is_missed else liver(full, empty)
    assert row.outcome is (Outcome.MISSED if is_missed else Outcome.SPURIOUS)
    diagonal = math.sqrt(12**2 + 20**2 + 20**2)
    assert [row.values[name] for name in ("dice", "nsd", "precision", "recall")] == [0, 0, 0, 0]
    assert row.values["hd95_mm"] == row.values["assd_mm"] == pytest.approx(diagonal)
    assert row.raw["hd95_mm"] == math.inf
    assert math.isnan(row.raw["precision" if is_missed else "recall"])
    assert row.values["volume_difference_ml"] == pytest.approx(-0.32 if is_missed else 0.32)
    assert row.reason


def test_a_structure_in_the_wrong_place_is_disjoint_but_measured() -> None:
    row = liver(cube(1, 8, 10), cube(1, 2, 4))
    assert row.outcome is Outcome.DISJOINT
    assert row.values["dice"] == 0
    assert row.values["hd95_mm"] == pytest.approx(6.0)


def test_a_missed_structure_scores_no_better_than_the_worst_prediction() -> None:
    reference = np.zeros((12, 10, 8), np.uint8)
    reference[0, 0, 0] = 1
    guess = np.zeros_like(reference)
    guess[-1, -1, -1] = 1
    missed, worst = liver(np.zeros_like(reference), reference), liver(guess, reference)
    assert missed.values["hd95_mm"] >= worst.values["hd95_mm"]
    assert missed.values["hd95_mm"] == image_diagonal_mm(reference.shape, SPACING)


def test_regions_are_unions_of_labels() -> None:
    reference, prediction = cube(1, 2, 4) + cube(2, 4, 6), cube(2, 2, 4) + cube(1, 4, 6)
    rows = score_case(prediction, reference, SPACING, {"whole": (1, 2), "part": 1})
    assert [row.values["dice"] for row in rows] == [1.0, 0.0]
    assert rows[0].values["nsd"] == 1.0


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_order_does_not_matter(order: str) -> None:
    rng = np.random.default_rng(0)
    prediction, reference = (rng.integers(0, 3, (9, 8, 7)).astype(np.uint8) for _ in range(2))
    expected = score_case(prediction, reference, SPACING, LABELS)
    as_read = score_case(np.array(prediction, order=order), np.array(reference, order="F"), SPACING, LABELS)
    for first, second in zip(expected, as_read, strict=True):
        assert second.values == pytest.approx(first.values)


def test_one_slice_is_measured_in_2d_whichever_axis_is_single() -> None:
    prediction, reference = cube(1, 2, 8)[:, :, 3], cube(1, 2, 6)[:, :, 3]
    flat = score_case(prediction, reference, (1.0, 2.0), {"liver": 1})[0]
    sliced = score_case(prediction[:, None], reference[:, None], (1.0, 9.0, 2.0), {"liver": 1})[0]
    assert flat.values == sliced.values
    assert flat.values["area_difference_mm2"] == 2 * 4 * 2
    assert "volume_difference_ml" not in flat.values


def test_tolerance_may_be_given_per_label() -> None:
    prediction, reference = cube(1, 2, 8), cube(1, 2, 6)
    wide = liver(prediction, reference, tolerance_mm={"liver": 2.0, "spleen": 0.0})
    narrow = liver(prediction, reference, tolerance_mm={"liver": 1.5, "spleen": 2.0})
    assert wide.values["nsd"] == 1.0 > narrow.values["nsd"]
    with pytest.raises(EvaluationError, match="spleen"):
        liver(prediction, reference, tolerance_mm={"liver": 2.0})
    with pytest.raises(EvaluationError, match="-1"):
        liver(prediction, reference, tolerance_mm=-1.0)


def test_object_metrics_join_the_row() -> None:
    row = liver(cube(1, 2, 6) + cube(1, 9, 11), cube(1, 2, 6), instances="components")
    assert (row.values["object_f1"], row.values["false_positives"]) == (1 / 1.5, 1)
    assert row.objects is not None
    absent = score_case(cube(1, 2, 6), cube(1, 2, 6), SPACING, LABELS, instances="components")[1]
    assert absent.values["false_positives"] == 0  # a case without lesions and false alarms counts as one with none
    assert math.isnan(absent.values["object_f1"])
    assert liver(cube(1, 2, 8), cube(1, 2, 6), instances="brats").values["brats_dice"] == pytest.approx(0.8)
    flat = score_case(cube(1, 2, 6)[:, :, 3], cube(1, 2, 6)[:, :, 3], (1, 1), {"cell": 1}, instances="em")[0]
    assert (flat.values["v_rand"], flat.values["pixel_error"]) == (1.0, 0.0)
    with pytest.raises(EvaluationError, match=r"\(12, 10, 8\)"):
        liver(cube(1, 2, 6), cube(1, 2, 6), instances="em")


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, math.nan)])
def test_spacing_that_cannot_be_used_is_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(EvaluationError, match="spacing"):
        score_case(cube(1, 2, 6), cube(1, 2, 6), spacing, LABELS)
