import json
from pathlib import Path

import pytest

from medseg.errors import PlanError
from medseg.plan import Plan, read_plan

BUNDLES = Path(__file__).parents[1] / "bundles"
PLANS = sorted(BUNDLES.glob("*/configs/plan.json"))
PLAN = BUNDLES / "phantom_cells_segmentation" / "configs" / "plan.json"  # three-dimensional


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.parents[1].name)
def test_shipped_plans_build_their_network(path):
    plan = read_plan(path)
    assert plan.name == path.parents[1].name
    network = plan.create_network()
    assert network.head.out_channels == plan.out_channels


def changed(tmp_path: Path, **values: object) -> Path:
    plan = {**json.loads(PLAN.read_text()), **values}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    return path


def test_values_survive_writing(tmp_path):
    plan = read_plan(PLAN)
    again = read_plan(changed(tmp_path, **plan.to_dict()))
    assert again.to_dict() == plan.to_dict()
    assert again.digest == plan.digest


def test_the_digest_depends_on_values_and_not_on_formatting(tmp_path):
    plan = read_plan(PLAN)
    (tmp_path / "dense.json").write_text(json.dumps(plan.to_dict(), separators=(",", ":")))
    assert read_plan(tmp_path / "dense.json").digest == plan.digest
    assert read_plan(changed(tmp_path, overlap=0.25)).digest != plan.digest


def test_labels_are_ordered_by_value(tmp_path):
    labels = {"far": 9, "background": 0, "near": 4}
    plan = read_plan(changed(tmp_path, labels=labels, crop_ratios=None))
    assert plan.label_values == [0, 4, 9]
    assert plan.label_names == ["background", "near", "far"]
    assert plan.out_channels == 3
    assert read_plan(changed(tmp_path, labels=labels, crop_ratios=None, activation="sigmoid")).out_channels == 2


FLAT = {"spatial_dims": 2, "patch": [8, 8], "tile": [8, 8], "spacing": None, "mirror_axes": []}


@pytest.mark.parametrize(("axis", "orientation"), [("R", "SP"), ("A", "RS"), ("S", "LA")])
def test_orientation_names_the_axes_of_a_slice(tmp_path, axis, orientation):
    plan = read_plan(changed(tmp_path, **FLAT, slice_axis=axis, orientation=orientation))
    assert plan.slice_axis == plan.to_dict()["slice_axis"] == axis
    with pytest.raises(PlanError, match="orientation"):
        read_plan(changed(tmp_path, **FLAT, slice_axis=axis, orientation=orientation[0] + axis))
    with pytest.raises(PlanError, match=r"slice_axis.*'I'"):
        read_plan(changed(tmp_path, **FLAT, slice_axis="I", orientation=orientation))


def test_an_unused_slice_axis_does_not_change_the_digest(tmp_path):
    plan = read_plan(changed(tmp_path))
    assert "slice_axis" not in plan.to_dict()
    assert read_plan(changed(tmp_path, slice_axis=None)).digest == plan.digest


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"schema_version": 99}, ["schema_version", "1", "99"]),
        ({"spatial_dims": 4}, ["spatial_dims", "4"]),
        ({"labels": {"a": 1}}, ["labels", "background: 0"]),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, ["labels", "[0, 1, 1]"]),
        ({"overlap": 1.0}, ["overlap", "[0, 1)", "1.0"]),
        ({"tile": [40, 40]}, ["tile", "3", "[40, 40]"]),
        ({"spacing": [1, 1, 0]}, ["spacing", "mm", "[1, 1, 0]"]),
        ({"normalization": []}, ["normalization", "(1)", "0"]),
        ({"crop_ratios": [0, 0, 0]}, ["crop_ratios", "[0, 0, 0]"]),
        ({"mirror_axes": [3]}, ["mirror_axes", "0..2", "[3]"]),
        ({"blending": "linear"}, ["blending", "gaussian", "'linear'"]),
        ({"labels": [0, 1]}, ["labels", "[0, 1]"]),
        ({"network": "unet"}, ["network", "'unet'"]),
        ({"channels": ["T1"]}, ["channels", "{name, modality}", "['T1']"]),
        ({"channels": [{"name": "T1"}]}, ["channels", "{name, modality}", "T1"]),
        ({"patch": [40.5, 40, 40]}, ["patch", "40.5"]),
        ({"spacing": [1, 1, float("nan")]}, ["NaN"]),
        ({"orientation": "XYZ"}, ["orientation", "LR PA IS", "'XYZ'"]),
        ({"orientation": "RRS"}, ["orientation", "LR PA IS", "'RRS'"]),
        ({"orientation": "RA"}, ["orientation", "LR PA IS", "'RA'"]),
        ({"normalization": [{"schema": "z_score"}]}, ["normalization", "scheme"]),
        ({"overlap": "half"}, ["overlap", "'half'"]),
        ({"slice_axis": "S"}, ["slice_axis", "2D", "'S'"]),
        ({"slice_axis": 2}, ["slice_axis", "2"]),
        ({"air_below": "-500 HU"}, ["air_below", "'-500 HU'"]),
        ({"extra": 1}, ["'extra'"]),
        ({"spacings": None}, ["'spacings'", "did you mean spacing?"]),
    ],
)
def test_a_broken_rule_is_one_line_with_the_file_and_the_value(tmp_path, values, facts):
    path = changed(tmp_path, **values)
    with pytest.raises(PlanError) as caught:
        read_plan(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_a_missing_key_is_named(tmp_path):
    plan = json.loads(PLAN.read_text())
    del plan["network"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PlanError, match="'network'"):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("text", [None, "{", "[1]", '{"name": "\ud800"}'])
def test_files_that_are_not_a_plan(tmp_path, text):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(PlanError) as caught:
        read_plan(path)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(PlanError, match="directory"):
        read_plan(tmp_path)


def test_sequences_and_mappings_of_any_type_are_accepted():
    values = read_plan(PLAN).to_dict()
    assert Plan(**{**values, "tile": tuple(values["tile"])}).digest == Plan(**values).digest
