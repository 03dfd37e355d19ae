import csv
import io
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from rich.console import Console

from medseg.errors import EvaluationError
from medseg.evaluation import Evaluation, evaluate, run, score_case
from medseg.evaluation.metrics import OBJECT_METRICS
from medseg.evaluation.tables import SHOWN_METRICS

LABELS = {"background": 0, "anterior": 1, "posterior": 2}
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def save(path: Path, label_map: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(label_map.astype(np.uint8), affine), path)


def two_boxes(shift: int = 0) -> np.ndarray:
    label_map = np.zeros((16, 14, 12), np.uint8)
    label_map[2 + shift : 7 + shift, 3:9, 3:9] = 1
    label_map[9 + shift : 13 + shift, 3:9, 3:9] = 2
    return label_map


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Ten cases: nine moved by 0 to 2 voxels, and case_9, whose posterior is missed."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for number in range(10):
        save(references / f"case_{number}.nii.gz", two_boxes())
        prediction = two_boxes(number % 3)
        if number == 9:
            prediction[prediction == 2] = 0
        save(predictions / f"case_{number}.nii.gz", prediction)
        (predictions / f"case_{number}.json").write_text("{}")  # the record beside a segmentation is not a case
    return predictions, references


def rows_in(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def printed(evaluation: Evaluation) -> str:
    console = Console(width=200, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    evaluation.print(console)
    return console.export_text()


def test_files_hold_what_the_cases_score(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluation = evaluate(*folders, out_dir=tmp_path / "out", labels=LABELS)
    rows = rows_in(tmp_path / "out" / "metrics.csv")
    assert [(row["case"], row["label"]) for row in rows[:2]] == [("case_0", "anterior"), ("case_0", "posterior")]
    assert len(rows) == 20
    expected = score_case(two_boxes(2), two_boxes(), (1.0, 1.5, 2.0), {"anterior": 1})[0]
    row = next(row for row in rows if row["case"] == "case_5" and row["label"] == "anterior")
    for name, value in expected.values.items():
        assert float(row[name]) == pytest.approx(value)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["schema_version"] == 1
    assert summary == json.loads(json.dumps(evaluation.summary))
    assert len(summary["inputs"]) == summary["num_cases"] == 10


def test_a_missed_structure_counts_and_its_case_comes_first(folders: tuple[Path, Path]) -> None:
    evaluation = evaluate(*folders, labels=LABELS)
    dice_of_shift = [1.0, 0.75, 0.5]  # a box of 4 voxels moved by 0, 1, 2
    posterior = evaluation.summary["labels"]["posterior"]
    expected = [dice_of_shift[number % 3] for number in range(9)] + [0.0]
    assert posterior["dice"]["mean"]["value"] == pytest.approx(np.mean(expected))
    assert posterior["dice"]["mean"]["n"] == 10
    assert posterior["outcomes"]["missed"] == 1
    diagonal = math.sqrt(16**2 + 21**2 + 24**2)
    hd95 = posterior["hd95_mm"]
    assert hd95["mean"]["value"] == pytest.approx((0 + 1 + 2) * 3 / 10 + diagonal / 10)
    assert hd95["median_detected"]["value"] == 1.0
    assert hd95["median_detected"]["n"] == 9
    assert evaluation.summary["cases"][0]["case"] == "case_9"
    class_mean = (evaluation.mean(label="anterior") + evaluation.mean(label="posterior")) / 2
    assert evaluation.mean() == pytest.approx(class_mean)
    text = printed(evaluation)
    assert text.index("case_9") < text.index("case_2") < text.index("class mean")
    assert "few" in text


def test_raw_value_and_reason_are_kept(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(*folders, out_dir=tmp_path / "out", labels=LABELS)
    missed = next(row for row in rows_in(tmp_path / "out" / "metrics.csv") if row["outcome"] == "missed")
    assert missed["hd95_mm_raw"] == "inf"
    assert missed["precision_raw"] == ""
    assert missed["precision"] == "0"
    assert "prediction empty" in missed["reason"]


def test_without_labels_every_value_counts_in_every_case(folders: tuple[Path, Path]) -> None:
    predictions, _ = folders
    spurious = two_boxes()
    spurious[0, 0, 0] = 7
    save(predictions / "case_0.nii.gz", spurious)
    evaluation = evaluate(*folders)
    assert list(evaluation.summary["labels"]) == ["1", "2", "7"]
    outcomes = evaluation.summary["labels"]["7"]["outcomes"]
    assert (outcomes["spurious"], outcomes["absent"]) == (1, 9)
    assert evaluation.mean(label="7") == 0.0


def bad_folders(folders: tuple[Path, Path]) -> tuple[Path, Path]:
    predictions, references = folders
    (predictions / "case_0.nii.gz").unlink()
    (references / "case_1.nii.gz").unlink()
    (predictions / "case_2.nii.gz").write_bytes(b"")
    (references / "case_3.nii.gz").write_bytes(b"not an image")
    save(predictions / "case_4.nii.gz", np.zeros((3, 3, 3)))
    moved = AFFINE.copy()
    moved[0, 3] = 0.6
    save(predictions / "case_5.nii.gz", two_boxes(), moved)
    save(predictions / "case_6.nii.gz", two_boxes() * 4)
    return predictions, references


def test_every_problem_is_listed_in_one_pass(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(EvaluationError) as caught:
        evaluate(*bad_folders(folders), out_dir=tmp_path / "out", labels=LABELS)
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("7 problems in 7 of 10 cases")
    expected = {
        "case_0": "prediction missing",
        "case_1": "reference missing",
        "case_2": "0 bytes",
        "case_3": "case_3.nii.gz",
        "case_4": "shape (3, 3, 3) differs from (16, 14, 12)",
        "case_5": "corners lie up to 0.6 mm",
        "case_6": "4 (180 voxels), 8 (144 voxels)",
    }
    for case, found in expected.items():
        assert sum(case in line and found in line for line in lines) == 1, case
    assert not (tmp_path / "out").exists()


def test_allow_missing_leaves_cases_with_problems_out_and_counts_them(folders: tuple[Path, Path]) -> None:
    evaluation = evaluate(*bad_folders(folders), labels=LABELS, allow_missing=True)
    assert evaluation.summary["num_cases"] == 3
    assert evaluation.summary["num_left_out"] == len(evaluation.problems) == 7
    assert {row.case for row in evaluation.rows} == {"case_7", "case_8", "case_9"}
    text = printed(evaluation)
    assert "7 problems" in text
    assert "7 left out" in text


def test_maps_beside_predictions_are_not_cases(folders: tuple[Path, Path]) -> None:
    predictions, _ = folders
    for name in ("case_3_entropy", "case_3_probability_anterior", "case_3_probability_posterior"):
        save(predictions / f"{name}.nii.gz", two_boxes())
    with_maps = evaluate(*folders, labels=LABELS)
    assert sorted({row.case for row in with_maps.rows}) == [f"case_{number}" for number in range(10)]
    save(predictions / "stray_entropy.nii.gz", two_boxes())  # beside no prediction of that name, so a case of its own
    with pytest.raises(EvaluationError, match="stray_entropy"):
        evaluate(*folders, labels=LABELS)


def test_predictions_may_be_named_as_monai_saves_them(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    plain = evaluate(predictions, references, labels=LABELS).summary
    for number in range(9):
        (predictions / f"case_{number}.nii.gz").rename(predictions / f"case_{number}_seg.nii.gz")
    assert evaluate(predictions, references, labels=LABELS).summary["class_mean"] == plain["class_mean"]
    save(predictions / "case_0.nii.gz", two_boxes())  # now case_0 is there by its own name
    with pytest.raises(EvaluationError, match="case_0_seg"):
        evaluate(predictions, references, labels=LABELS)


def test_a_log_gets_no_progress_bar(folders: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    evaluate(*folders, labels=LABELS, progress=True)
    assert capsys.readouterr().err == ""


def test_one_case_is_not_plural(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    evaluation = evaluate(predictions / "case_0.nii.gz", references / "case_0.nii.gz", labels=LABELS)
    assert "1 case of 1 patient" in printed(evaluation)
    assert "1 cases" not in printed(evaluation)


def test_a_shift_below_half_a_voxel_is_allowed(folders: tuple[Path, Path]) -> None:
    moved = AFFINE.copy()
    moved[0, 3] = 0.49
    save(folders[0] / "case_0.nii.gz", two_boxes(), moved)
    assert evaluate(*folders, labels=LABELS).summary["num_cases"] == 10


def test_inputs_without_a_pair_are_refused(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="empty"):
        evaluate(tmp_path / "empty", folders[1])
    with pytest.raises(EvaluationError, match="nowhere"):
        evaluate(folders[0], tmp_path / "nowhere")
    save(tmp_path / "other" / "x.nii.gz", two_boxes())
    with pytest.raises(EvaluationError, match="11 problems"):
        evaluate(tmp_path / "other", folders[1], allow_missing=True)
    save(folders[0] / "case_0.nii", two_boxes())
    with pytest.raises(EvaluationError, match=r"case_0.nii\b.*case_0.nii.gz"):
        evaluate(*folders)


def test_comparison_with_other_predictions_and_with_an_earlier_table(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    predictions, references = folders
    better = tmp_path / "better"
    for number in range(10):
        save(better / f"case_{number}.nii.gz", two_boxes())
    evaluation = evaluate(better, references, labels=LABELS, against=predictions)
    dice = {d.label: d for d in evaluation.comparison if d.metric == "dice"}
    assert list(dice) == ["anterior", "posterior", "class mean"]
    this, other = evaluate(better, references, labels=LABELS), evaluate(predictions, references, labels=LABELS)
    assert dice["class mean"].difference.value == pytest.approx(this.mean() - other.mean())
    assert evaluation.summary["comparison"]["differences"][0]["metric"] == "dice"
    assert "paired comparison" in printed(evaluation)
    other.write(tmp_path / "earlier")
    from_table = evaluate(better, references, labels=LABELS, against=tmp_path / "earlier")
    assert from_table.comparison[0].difference.value == pytest.approx(evaluation.comparison[0].difference.value)


def test_patients_widen_the_interval(folders: tuple[Path, Path]) -> None:
    alone = evaluate(*folders, labels=LABELS)
    pairs = evaluate(*folders, labels=LABELS, patients={f"case_{n}": f"p{n % 3}" for n in range(10)})
    assert (alone.summary["num_patients"], pairs.summary["num_patients"]) == (10, 3)
    assert pairs.mean() == alone.mean()
    assert pairs.rows[1].patient == "p0"


def test_sensitivity_by_size_pools_the_objects_of_all_cases(folders: tuple[Path, Path]) -> None:
    evaluation = evaluate(*folders, labels=LABELS, instances="components")
    bins = evaluation.summary["labels"]["posterior"]["sensitivity_by_size"]
    assert [entry["n"] for entry in bins] == [0, 10, 0, 0]  # 144 voxels of 3 mm³ are 0.43 ml
    assert bins[1]["sensitivity"] == 0.9
    assert bins[3]["to"] is None
    text = printed(evaluation)
    assert "F1 at any overlap" in text
    assert "PQ" in text


def test_same_input_same_summary(folders: tuple[Path, Path]) -> None:
    assert evaluate(*folders, labels=LABELS).summary == evaluate(*folders, labels=LABELS).summary


def test_flat_images_are_evaluated_in_2d(tmp_path: Path) -> None:
    for name, shift in (("p", 1), ("r", 0)):
        save(tmp_path / name / "slice.nii.gz", two_boxes(shift)[:, :, 4:5])
    evaluation = evaluate(tmp_path / "p", tmp_path / "r", labels=LABELS, instances="em", out_dir=tmp_path / "out")
    assert evaluation.summary["spatial_dims"] == 2
    row = rows_in(tmp_path / "out" / "metrics.csv")[0]
    assert float(row["reference_mm2"]) == 5 * 6 * 1.5
    assert float(row["v_rand"]) == 1.0  # moved, but one cell in one piece


def test_negative_values_are_not_structures(tmp_path: Path) -> None:
    """Some tools mark a margin with -1; only values above 0 are structures (nnUNet#1007)."""
    reference = two_boxes().astype(np.int16)
    reference[:, :, -1] = -1
    for name, array in (("predictions", two_boxes().astype(np.int16)), ("references", reference)):
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / name / "case.nii.gz")
    evaluation = evaluate(tmp_path / "predictions", tmp_path / "references")
    assert list(evaluation.summary["labels"]) == ["1", "2"]
    assert evaluation.mean() == 1.0


@pytest.mark.parametrize("shape", [(20, 1, 1), (1, 20, 1), (1, 1, 1)])
def test_volumes_with_several_axes_of_length_1_are_measured(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for name in ("predictions", "references"):
        save(tmp_path / name / "case.nii.gz", np.ones(shape))
    evaluation = evaluate(tmp_path / "predictions", tmp_path / "references", out_dir=tmp_path / "out")
    assert evaluation.mean() == evaluation.mean("nsd") == 1.0
    assert evaluation.summary["spatial_dims"] == 3
    assert float(rows_in(tmp_path / "out" / "metrics.csv")[0]["reference_ml"]) == pytest.approx(max(shape) * 3 / 1000)


@pytest.mark.parametrize("axcodes", ["LAS", "RAI", "PSR", "IRA"])
@pytest.mark.parametrize("degrees", [0, 12])
def test_a_prediction_in_another_axis_order_is_reordered(tmp_path: Path, axcodes: str, degrees: float) -> None:
    """The same voxels at the same places in mm score the same however the file stores them."""
    affine = AFFINE.copy()
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    affine[:3, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]] @ affine[:3, :3]
    save(tmp_path / "references" / "case.nii.gz", two_boxes(), affine)
    save(tmp_path / "straight" / "case.nii.gz", two_boxes(1), affine)
    stored = nib.Nifti1Image(two_boxes(1), affine)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(axcodes))
    (tmp_path / "turned").mkdir()
    nib.save(stored.as_reoriented(turn), tmp_path / "turned" / "case.nii.gz")
    expected = evaluate(tmp_path / "straight", tmp_path / "references", labels=LABELS)
    turned = evaluate(tmp_path / "turned", tmp_path / "references", labels=LABELS)
    assert [row.values for row in turned.rows] == [row.values for row in expected.rows]
    assert turned.mean() == pytest.approx((0.8 + 0.75) / 2)  # boxes of 5 and of 4 voxels, moved by one


@pytest.mark.parametrize("width", [72, 80, 120])
@pytest.mark.parametrize("instances", ["components", "brats"])
def test_tables_fit_the_terminal_and_cut_no_number(
    folders: tuple[Path, Path], tmp_path: Path, width: int, instances: str
) -> None:
    better = tmp_path / "better"
    for number in range(10):
        save(better / f"case_{number}.nii.gz", two_boxes())
    evaluation = evaluate(*folders, labels=LABELS, instances=instances, against=better)
    stream = io.StringIO()
    evaluation.print(Console(width=width, file=stream))
    text = stream.getvalue()
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    assert "\x1b" not in text  # no colours in a file
    for label, entry in evaluation.summary["labels"].items():
        for metric in evaluation.metrics:
            mean = entry[metric.name]["mean"]
            if metric.name in (*SHOWN_METRICS, *OBJECT_METRICS) and mean["low"] is not None:
                digits = 2 if metric.unit else 3
                interval = f"{mean['low']:.{digits}f}–{mean['high']:.{digits}f}"
                assert interval in text, (label, metric.name)


def test_an_exception_of_one_case_belongs_to_this_case(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, case: str, **kwargs: object) -> object:
        if case == "case_3":
            raise KeyError("inside")
        return score_case(*args, case=case, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "score_case", fails)
    header = nib.Nifti1Header()
    header.set_data_shape((16, 14, 12))
    header.set_data_dtype(np.uint8)
    header.set_sform(AFFINE, code=1)
    header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, 1, np.nan
    (folders[0] / "case_4.nii.gz").unlink()
    (folders[0] / "case_4.nii").write_bytes(header.binaryblock + bytes(4) + two_boxes().tobytes(order="F"))
    with pytest.raises(EvaluationError) as raised:
        evaluate(*folders, labels=LABELS)
    assert "case_4.nii" in str(raised.value)
    evaluation = evaluate(*folders, labels=LABELS, allow_missing=True)
    assert {row.case for row in evaluation.rows} == {f"case_{n}" for n in range(10)} - {"case_3", "case_4"}
    assert [problem.case for problem in evaluation.problems] == ["case_3", "case_4"]
    assert "KeyError" in evaluation.problems[0].found


def test_margins_of_negative_values_are_background(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    for folder in folders:
        for path in folder.glob("*.nii.gz"):
            path.unlink()
    reference = two_boxes().astype(np.int16)
    reference[0] = -1
    nib.save(nib.Nifti1Image(reference, AFFINE), references / "case.nii.gz")
    save(predictions / "case.nii.gz", two_boxes())
    evaluation = evaluate(predictions, references)
    assert list(evaluation.summary["labels"]) == ["1", "2"]
    assert evaluation.mean() == 1.0


@pytest.mark.parametrize("shape", [(20, 1, 1), (1, 1, 20), (1, 20, 1), (1, 1, 1)])
def test_volumes_with_several_axes_of_one_voxel_are_measured(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.uint8)
    save(tmp_path / "p" / "x.nii.gz", array)
    save(tmp_path / "r" / "x.nii.gz", array)
    evaluation = evaluate(tmp_path / "p", tmp_path / "r", labels=LABELS)
    assert evaluation.mean(label="anterior") == 1.0
    assert evaluation.mean("hd95_mm", "anterior") == 0.0
