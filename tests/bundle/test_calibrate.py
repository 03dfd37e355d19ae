"""Calibration of a bundle's confidence on the fold that its training left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bundle.tiny_bundles import record_weights

import medseg
from medseg.bundle import BundleFolder, write_calibration
from medseg.bundle.calibrate import CaseCounts, CaseVoxels, expected_error, fit_dice, fit_temperature, fit_thresholds
from medseg.datasets import generate_phantoms, read_manifest
from medseg.errors import BundleError
from medseg.inference.confidence import EDGES, VolumeCounts
from medseg.weights import sha256


@pytest.fixture(scope="module")
def drawn() -> list[CaseVoxels]:
    """Ten cases whose labels are drawn from probabilities at temperature 2.5."""
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(10):
        logits = rng.normal(0, 4, (3, 4000))
        p = torch.from_numpy(logits / 2.5).softmax(0).numpy()
        channels = (rng.random(4000) > p.cumsum(0)[:2, :]).sum(0)
        cases.append(CaseVoxels(torch.from_numpy(logits).log_softmax(0).numpy().astype(np.float32), channels))
    return cases


def test_the_temperature_of_drawn_labels_is_found(drawn):
    assert fit_temperature(drawn) == pytest.approx(2.5, rel=0.04)
    assert expected_error(drawn, 2.5) < 0.01 < 0.1 < expected_error(drawn, 1.0)


def counts_between(first: float, last: float) -> VolumeCounts:
    """Counts of voxels evenly spread over the logits between two ends."""
    counts = VolumeCounts(["background", "a"], 1.0)
    inside = abs(EDGES - (first + last) / 2) <= (last - first) / 2
    counts.counts[1, 1:][inside] = 10
    counts.num_labelled[1] = 10 * int((EDGES[inside] >= 0).sum())
    return counts


def test_thresholds_are_the_quantiles_of_what_gives_the_references_volumes():
    counts = counts_between(-6, 6)
    scores = np.random.default_rng(0).normal(0.4, 0.8, 400)
    cases = [CaseCounts(counts, {"a": int(counts.voxels_above("a", s))}, {"a": 0.9}) for s in scores]
    high, low = fit_thresholds(cases)["a"]
    assert [high, low] == pytest.approx(np.quantile(scores, [0.95, 0.05]), abs=0.1)
    new = np.random.default_rng(1).normal(0.4, 0.8, 2000)
    volumes = [counts.voxels_above("a", s) for s in new]
    covered = np.mean([counts.voxels_above("a", high) <= v <= counts.voxels_above("a", low) for v in volumes])
    assert covered == pytest.approx(0.9, abs=0.05)


def test_the_offset_of_the_dice_is_the_median_difference():
    counts = counts_between(0, 6)
    counts.sum_labelled[1] = counts.sums[1] = 0.5 * counts.num_labelled[1]
    expected = counts.expected_dice("a")
    cases = [CaseCounts(counts, {"a": 5}, {"a": expected + d}) for d in (-0.1, 0.02, 0.05)]
    assert fit_dice(cases)["a"] == pytest.approx(0.02, abs=1e-4)


@pytest.fixture
def dataset(tmp_path) -> tuple[Path, Path]:
    """Write six small phantoms, two of them in fold 1, and their manifest."""
    generate_phantoms(tmp_path / "data", num_cases=6, seed=5, shape=(24, 24, 16))
    manifest = yaml.safe_load(read_manifest("phantom_cells").path.read_text(encoding="utf-8"))
    ids = [f"phantom_{n:03d}" for n in range(6)]
    manifest |= {"cases": ids, "folds": {0: ids[:1], 1: ids[1:3], 2: ids[3:]}}
    (tmp_path / "six.yaml").write_text(yaml.safe_dump(manifest))
    return tmp_path / "data", tmp_path / "six.yaml"


def record_fold(bundle: Path, fold: object, **settings: object) -> None:
    record = {"weights_sha256": sha256(bundle / "models" / "model.pt"), "settings": {"fold": fold, **settings}}
    (bundle / "models" / "model.json").write_text(json.dumps(record))


def test_a_calibration_is_loaded_with_its_weights_only(bundle, dataset, scan, tmp_path):
    data, manifest = dataset
    record_fold(bundle, 1)
    plain = medseg.load(bundle, device="cpu").predict(scan)
    found = write_calibration(bundle, data, manifest)
    assert (found.cases, found.patients, found.data) == (2, 2, "phantom_cells, fold 1")
    assert found.thresholds == {}  # too few cases for an interval
    model = medseg.load(bundle, device="cpu")
    assert model.calibration == BundleFolder(bundle).calibration([found.weights_sha256]) == found
    seg = model.predict(scan)
    np.testing.assert_array_equal(seg.array, plain.array)
    assert seg.predicted_dice.keys() == {"round", "elongated"}
    torch.save(medseg.load_network(bundle).half().state_dict(), tmp_path / "other.pt")
    assert medseg.load(bundle, tmp_path / "other.pt", device="cpu").calibration is None
    assert medseg.load(bundle, [bundle / "models" / "model.pt"] * 2, device="cpu").calibration is None


def test_weights_that_saw_all_cases_or_began_with_others_are_refused(bundle, dataset):
    data, manifest = dataset
    for settings in ({"fold": "all"}, {"fold": 1, "init_weights": "RUN1/model.pt"}):
        record_fold(bundle, **settings)
        with pytest.raises(BundleError, match=r"model\.json"):
            write_calibration(bundle, data, manifest)
    record_weights(bundle)
    with pytest.raises(BundleError, match=r"model\.json"):
        write_calibration(bundle, data, manifest)
    assert not (bundle / "models" / "calibration.json").exists()


def test_labels_that_the_plan_lacks_are_named(bundle, dataset):
    data, manifest = dataset
    record_fold(bundle, 1)
    write_calibration(bundle, data, manifest)
    file = bundle / "models" / "calibration.json"
    file.write_text(file.read_text().replace('"round"', '"square"'))
    with pytest.raises(BundleError, match="square"):
        medseg.load(bundle, device="cpu")
