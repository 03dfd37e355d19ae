"""Calibrated confidence: counts by probability against brute force, quantiles against their closed form."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from inference.plans import small_plan
from inference.test_slices import scan_in, slice_plan
from inference.thin_network import thin_network
from scipy import special

from medseg.errors import BundleError
from medseg.inference import Predictor, SlicePredictor, predict_files
from medseg.inference.confidence import EDGES, Calibration, VolumeCounts, read_calibration
from medseg.inference.uncertainty import Uncertainty

NAMES = ["background", "front", "back"]
CALIBRATION = Calibration(
    "ab" * 32, 2.5, {"front": [0.5, -0.5], "back": [0.0, -2.0]}, {"front": -0.02, "back": 0.0}, data="tiny, fold 1"
)


def random_logits(shape: tuple[int, ...] = (12, 11, 10)) -> torch.Tensor:
    return 4 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))


def counted(logits: torch.Tensor, temperature: float, parts: int = 1) -> VolumeCounts:
    counts = VolumeCounts(NAMES, temperature)
    for part in logits.chunk(parts, dim=1):
        counts.observe(part, [slice(None)] * 3, (0, 1, 2))
    return counts


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("parts", [1, 4])
def test_counts_are_those_of_all_voxels(temperature, parts):
    logits = random_logits()
    counts, p = counted(logits, temperature, parts), (logits / temperature).softmax(0).double()
    winner = logits.argmax(0)
    for channel, name in enumerate(NAMES[1:], 1):
        for edge in EDGES[::20]:
            assert counts.voxels_above(name, edge) == int((p[channel] >= torch.tensor(edge).sigmoid()).sum())
        is_label = winner == channel
        expected = 2 * p[channel][is_label].sum() / (is_label.sum() + p[channel].sum())
        assert counts.expected_dice(name) == pytest.approx(float(expected), abs=1e-3)


def test_the_threshold_of_a_volume_gives_that_volume():
    counts = counted(random_logits(), 1.0)
    for edge in EDGES[10:-10:15]:
        found = counts.threshold_of("front", counts.voxels_above("front", edge))
        assert found == pytest.approx(edge, abs=0.15)
    assert counts.threshold_of("front", 0) > 5
    assert counts.threshold_of("front", 1e9) == EDGES[0]


def test_certain_and_absent_structures():
    logits = torch.full((3, 6, 6, 6), -40.0)
    logits[0] = 0
    assert counted(logits, 1.0).counts.sum() == 0
    assert counted(logits, 1.0).predicted_dice(CALIBRATION) == {"front": None, "back": None}
    assert counted(logits, 1.0).intervals_ml(CALIBRATION, 1.0) == {"front": [0, 0], "back": [0, 0]}
    logits[1, :3] = 40
    counts = counted(logits, 1.0)
    assert counts.expected_dice("front") == pytest.approx(1)
    assert counts.intervals_ml(CALIBRATION, 1.0)["front"] == pytest.approx([0.108, 0.108])


def test_the_expected_dice_is_the_mean_dice_of_references_drawn_from_the_probabilities():
    logits, rng = random_logits(), np.random.default_rng(0)
    counts, p = counted(logits, 1.0), logits.softmax(0).double().numpy().reshape(3, -1)
    predicted = p.argmax(0) == 1
    dice = []
    for _ in range(200):
        reference = rng.random(p.shape[1]) < p[1]
        dice.append(2 * (predicted & reference).sum() / (predicted.sum() + reference.sum()))
    assert counts.expected_dice("front") == pytest.approx(np.mean(dice), abs=0.003)


@pytest.mark.parametrize(
    "values",
    [{"temperature": 0}, {"temperature": float("nan")}, {"thresholds": {"front": [0, 1]}},
     {"thresholds": {"front": [1]}}, {"dice_offset": {"front": float("inf")}}, {"schema_version": 7}, {"other": 1}],
)  # fmt: skip
def test_a_damaged_calibration_is_named(tmp_path, values):
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(CALIBRATION.to_dict()))
    assert read_calibration(file).to_dict() == CALIBRATION.to_dict()
    file.write_text(json.dumps(CALIBRATION.to_dict() | values))
    with pytest.raises(BundleError, match=r"calibration\.json"):
        read_calibration(file)


SCAN = (np.random.default_rng(0).normal(size=(20, 22, 18)).astype(np.float32), np.diag([1.0, 1.2, 1.1, 1.0]))


def model(temperature: float | None, **options) -> Predictor:
    calibration = None if temperature is None else Calibration("", temperature, CALIBRATION.thresholds)
    return Predictor(thin_network(4, 3), small_plan(), "cpu", calibration=calibration, **options)


def test_a_temperature_changes_probabilities_and_no_label():
    plain = model(None, save_probabilities=True, uncertainty=True).predict(SCAN)
    p = np.stack([plain.probabilities[name] for name in NAMES]).astype(np.float64)
    logits, is_precise = np.log(np.maximum(p, 1e-8)), p.min(0) > 1e-4  # half precision cannot tell smaller numbers
    for temperature in (0.4, 1.0, 6.0):
        found = model(temperature, save_probabilities=True, uncertainty=True).predict(SCAN)
        np.testing.assert_array_equal(found.array, plain.array)
        expected = torch.from_numpy(logits / temperature).softmax(0).numpy()[:, is_precise]
        for channel, name in enumerate(NAMES):
            np.testing.assert_allclose(found.probabilities[name][is_precise], expected[channel], atol=4e-3)
        entropy = special.entr(expected).sum(0) / np.log(3)
        np.testing.assert_allclose(found.entropy[is_precise] / 255, entropy, atol=1e-2)
        low, high = found.intervals_ml["front"]
        assert low <= found.volumes_ml()["front"] <= high


def test_labels_are_those_of_a_predictor_without_observers_under_a_memory_limit():
    plain, limited = model(None).predict(SCAN), model(2.0, max_ram="8GB").predict(SCAN)
    np.testing.assert_array_equal(plain.array, limited.array)
    assert limited.intervals_ml is not None
    assert plain.intervals_ml is None


def test_slices_of_a_volume_are_counted_together():
    network, plan = thin_network(5, 3, spatial_dims=2), slice_plan()
    calibration = Calibration("", 2.0, CALIBRATION.thresholds, CALIBRATION.dice_offset)
    image = scan_in("LPS")
    found = SlicePredictor(network, plan, "cpu", calibration=calibration, save_probabilities=True).predict(image)
    voxel_ml = found.scan.grid.voxel_volume_mm3 / 1000
    for name, (high, low) in calibration.thresholds.items():
        p = found.probabilities[name].astype(np.float64)
        for end, threshold in zip(found.intervals_ml[name], (high, low), strict=True):
            nearest = [np.count_nonzero(p >= 1 / (1 + np.exp(-threshold - shift))) * voxel_ml for shift in (0.1, -0.1)]
            labelled = found.volumes_ml()[name]
            assert min(nearest[0], labelled) - 1e-3 <= end <= max(nearest[1], labelled) + 1e-3
    assert set(found.predicted_dice) == {"front", "back"}


def test_records_hold_intervals_and_dice_only_with_a_calibration(tmp_path):
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(*SCAN), tmp_path / "scans" / "a.nii.gz")
    for _ in range(2):  # the second run skips the case
        (result,) = predict_files(model(2.0), [tmp_path / "scans"], tmp_path / "out")
        assert set(result.intervals_ml) == {"front", "back"}
    assert result.status == "skipped"
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    assert record["temperature"] == 2.0
    assert record["volume_intervals_ml"] == result.intervals_ml
    (other,) = predict_files(model(None, uncertainty=True), [tmp_path / "scans"], tmp_path / "out")
    assert other.status == "done"  # another calibration is another result
    assert other.intervals_ml == {}


def test_the_temperature_of_an_uncertainty_is_that_of_its_probabilities():
    logits = random_logits()
    warm, plain = (Uncertainty(logits.shape[1:], 3, "softmax", t) for t in (2.0, 1.0))
    warm.observe(2 * logits, [slice(None)] * 3, (0, 1, 2))
    plain.observe(logits, [slice(None)] * 3, (0, 1, 2))
    np.testing.assert_array_equal(warm.entropy, plain.entropy)
    np.testing.assert_array_equal(warm.counts, plain.counts)
