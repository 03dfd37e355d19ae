"""Bundles that a stranger has tampered with: nothing in them runs, and each costs one line and little time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bundle import hostile_bundles
from bundle.tiny_bundles import add_random_weights, change_plan, copy_bundle

hostile_bundles.define_cases()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Outcome of every case, all loaded by one process."""
    root = tmp_path_factory.mktemp("hostile")
    bundle = copy_bundle("phantom_cells_segmentation", root / "template" / "tiny_segmentation")
    change_plan(bundle, {"channels": [4, 8, 8], "strides": [2, 2]}, patch=[16, 16, 16], tile=[16, 16, 16])
    add_random_weights(bundle)
    (root / "cases").mkdir()
    canary = root / "canary"
    done = subprocess.run(
        [sys.executable, hostile_bundles.__file__, str(bundle), str(root / "cases")],
        env=os.environ | {"CANARY": str(canary)},
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"canary": canary, "printed": done.stderr}


def test_there_are_at_least_40_hostile_bundles() -> None:
    assert len(set(hostile_bundles.CASES) - hostile_bundles.HARMLESS) >= 40


def test_nothing_is_executed(outcomes: dict[str, Any]) -> None:
    assert not Path(outcomes["canary"]).exists()


def test_memory_stays_below_2_gb(outcomes: dict[str, Any]) -> None:
    assert outcomes["peak_bytes"] < 2 * 1024**3


@pytest.mark.parametrize("name", hostile_bundles.CASES)
def test_a_tampered_bundle_gives_one_line_and_a_harmless_one_works(outcomes: dict[str, Any], name: str) -> None:
    found = outcomes["cases"][name]
    if name in hostile_bundles.HARMLESS:
        assert found["outcome"] == "loaded", found["line"]
    else:
        assert found["outcome"] in ("BundleError", "PlanError", "WeightsError", "NetworkError"), found
        assert "\n" not in found["line"]
        assert len(found["line"]) < 2000
        assert "tiny_segmentation" in found["line"]  # the line names the file
    assert found["seconds"] < 10
    assert not found["wrote"]
