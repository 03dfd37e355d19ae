import json
from pathlib import Path

import pytest

from medseg.errors import PlanError
from medseg.plan import Plan, read_plan

BUNDLES = Path(__file__).parents[1] / "bundles"
PLANS = sorted(BUNDLES.glob("*/configs/plan.json"))
PLAN = BUNDLES / "phantom_cells_segmentation" / "configs" / "plan.json"  # of three dimensions


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


def test_the_digest_sees_values_and_not_formatting(tmp_path):
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
    with pytest.raises(PlanError, match="orientation needs one letter of each of"):
        read_plan(changed(tmp_path, **FLAT, slice_axis=axis, orientation=orientation[0] + axis))
    with pytest.raises(PlanError, match="slice_axis must be R, A or S"):
        read_plan(changed(tmp_path, **FLAT, slice_axis="I", orientation=orientation))


def test_an_unused_slice_axis_leaves_the_digest_as_it_was(tmp_path):
    plan = read_plan(changed(tmp_path))
    assert "slice_axis" not in plan.to_dict()
    assert read_plan(changed(tmp_path, slice_axis=None)).digest == plan.digest


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"schema_version": 99}, "schema_version must be 1, found 99"),
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, found 4"),
        ({"labels": {"a": 1}}, "labels must contain background: 0"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, r"distinct non-negative integers, found \[0, 1, 1\]"),
        ({"overlap": 1.0}, r"overlap must be in \[0, 1\), found 1.0"),
        ({"tile": [40, 40]}, r"tile needs 3 positive sizes, found \[40, 40\]"),
        ({"spacing": [1, 1, 0]}, "spacing needs 3 positive values in mm"),
        ({"normalization": []}, r"normalization needs one entry a channel \(1\), found 0"),
        ({"crop_ratios": [0, 0, 0]}, "crop_ratios needs one ratio a label"),
        ({"mirror_axes": [3]}, r"mirror_axes must lie in 0..2, found \[3\]"),
        ({"blending": "linear"}, "blending must be gaussian or constant, found 'linear'"),
        ({"labels": [0, 1]}, r"labels must be an object of name: value, found \[0, 1\]"),
        ({"network": "unet"}, "network must be an object {name, arguments}, found 'unet'"),
        ({"channels": ["T1"]}, "channels must be a list of {name, modality}"),
        ({"channels": [{"name": "T1"}]}, "channels needs at least one {name, modality}"),
        ({"patch": [40.5, 40, 40]}, "patch must be a list of whole numbers"),
        ({"spacing": [1, 1, float("nan")]}, "spacing must be a list of finite numbers, or null"),
        ({"orientation": "XYZ"}, "orientation needs one letter of each of LR PA IS, found 'XYZ'"),
        ({"orientation": "RRS"}, "orientation needs one letter of each of LR PA IS, found 'RRS'"),
        ({"orientation": "RA"}, "orientation needs one letter of each of LR PA IS, found 'RA'"),
        ({"normalization": [{"schema": "z_score"}]}, "normalization: each entry needs a scheme"),
        ({"overlap": "half"}, "overlap must be a number, found 'half'"),
        ({"slice_axis": "S"}, "slice_axis must be R, A or S, and is for 2D networks only; found 'S'"),
        ({"slice_axis": 2}, "slice_axis must be a text such as S, or null, found 2"),
        ({"air_below": "-500 HU"}, "air_below must be a finite number, or null, found '-500 HU'"),
        ({"extra": 1}, "unknown key 'extra'; valid keys are"),
    ],
)
def test_a_broken_rule_is_one_line_with_the_file_and_the_value(tmp_path, values, rule):
    path = changed(tmp_path, **values)
    with pytest.raises(PlanError, match=rule) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path):
    plan = json.loads(PLAN.read_text())
    del plan["network"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PlanError, match="missing 1 required positional argument: 'network'"):
        read_plan(tmp_path / "plan.json")


def test_files_that_are_no_plan(tmp_path):
    with pytest.raises(PlanError, match=r"plan\.json: no such file.*--bundle_root"):
        read_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(PlanError, match="not valid JSON"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="could not be read: Is a directory"):
        read_plan(tmp_path)
    (tmp_path / "plan.json").write_text("[1]")
    with pytest.raises(PlanError, match="a plan is a JSON object, found list"):
        read_plan(tmp_path / "plan.json")


def test_sequences_and_mappings_need_not_be_json_types():
    values = read_plan(PLAN).to_dict()
    assert Plan(**{**values, "tile": tuple(values["tile"])}).digest == Plan(**values).digest
