"""Whole plans equal those of nnU-Net's planner on the recorded fingerprints, except where docs/planning.md says why."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from planning.fingerprints import DECATHLON

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from compare_plans import generated_fingerprints, plan_of_medseg, real_fingerprints, row, summary_of_medseg  # noqa: E402

RECORD = json.loads((Path(__file__).parent / "nnunet_plans.json").read_text(encoding="utf-8"))
MEASURED = ("hippocampus (208 cases)", "EM slices, 2D", "spinal cord, T2*", "CT sample, 41 labels")
COMPARED = ("spacing", "patch", "batch", "stages", "channels", "strides", "kernels", "uses_nonzero")
SCHEMES = {"ZScoreNormalization": "z_score", "CTNormalization": "ct", "RGBTo01Normalization": "window"}
# Values that differ, with the reason in docs/planning.md.
DIFFERENCES = {
    "EM stack, 8 slices": {"patch"},
    "RGB pictures, 12 classes": {"spacing"},
    "EM slices, 2D": {"spacing"},
}


@pytest.mark.parametrize("name", RECORD["plans"])
def test_plans_differ_only_where_a_reason_is_given(name: str) -> None:
    theirs, ours = RECORD["plans"][name], RECORD["medseg"][name]
    assert {key for key in COMPARED if ours[key] != theirs[key]} == DIFFERENCES.get(name, set())
    assert ours["normalization"] == [SCHEMES[scheme] for scheme in theirs["normalization"]]


def test_the_record_and_the_documentation_have_every_fingerprint() -> None:
    names = {f"Decathlon {task}" for task in DECATHLON} | {*generated_fingerprints()} | {*MEASURED}
    assert {*RECORD["plans"]} == {*RECORD["medseg"]} == names
    page = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    for name in names:
        assert row(name, RECORD["medseg"][name], RECORD["plans"][name]) in page


@pytest.mark.parametrize(
    "name",
    [
        "Decathlon 04 hippocampus",
        *(pytest.param(name, marks=pytest.mark.slow) for name in RECORD["plans"] if name != "Decathlon 04 hippocampus"),
    ],
)
def test_the_rules_still_make_the_recorded_plan(name: str, request: pytest.FixtureRequest) -> None:
    if name in MEASURED:
        data = real_fingerprints(request.getfixturevalue("shared_data"))[name]()
    else:
        data = generated_fingerprints()[name]
    assert summary_of_medseg(plan_of_medseg(data)) == RECORD["medseg"][name]
