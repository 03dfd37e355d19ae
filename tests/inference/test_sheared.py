"""Tests of scans with a gantry tilt, with MONAI's resampling of the whole volume of logits as oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from inference.plans import small_plan
from inference.thin_network import thin_network
from monai.data import MetaTensor
from monai.transforms import SpatialResample

from medseg.inference import Predictor, SlidingWindowInferer
from medseg.inference.preprocessing import preprocessing
from medseg.inference.scan import load_scan
from medseg.transforms.restore import restore_labels

LABELS = {"background": 0, "a": 3, "b": 5, "c": 9}


def tilted_scan() -> tuple[np.ndarray, np.ndarray]:
    affine = np.array([[0, -1.5, 0.4, 4], [2, 0, 0.3, -3], [0, 0, -1.2, 7], [0, 0, 0, 1.0]])
    return np.random.default_rng(2).normal(size=(14, 19, 11)).astype(np.float32), affine


def logits_by_monai(network: torch.nn.Module, plan: Any) -> np.ndarray:
    """Return the logits (C, *native) computed by MONAI's transforms, all classes over the whole volume at once."""
    scan = load_scan(tilted_scan(), plan)
    image = preprocessing(plan)(scan.to_tensor())
    with torch.no_grad():
        logits = SlidingWindowInferer(plan.tile, overlap=plan.overlap, mode=plan.blending)(
            image.as_tensor()[None], network
        )[0]
    native = scan.reference.grid
    resample = SpatialResample(mode="bilinear", padding_mode="border", align_corners=True, dtype=torch.float64)
    whole = resample(MetaTensor(logits, affine=image.affine), torch.from_numpy(native.affine), native.shape)
    return np.asarray(whole.numpy(), dtype=np.float64)


@pytest.mark.parametrize("features", [9, 2], ids=["logits blended", "features blended"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_labels_probabilities_and_entropy_are_those_of_the_whole_volume(
    features: int, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_labels, "SHEARED_CHUNK_VOXELS", 50)  # a few rows of a plane per chunk
    plan = small_plan(labels=LABELS, spacing=[1.4, 1.1, 1.3], activation=activation)
    network = thin_network(features, 4 - (activation == "sigmoid"))
    logits = logits_by_monai(network, plan)
    predictor = Predictor(network, plan, "cpu", backend="torch", uncertainty=True, save_probabilities=True)
    assert (predictor.backend.head_weight is not None) == (features < len(logits))
    seg = predictor.predict(tilted_scan())
    if activation == "softmax":
        p = np.exp(logits - logits.max(0))
        p /= p.sum(0)
        labels = np.array(list(LABELS.values()))[logits.argmax(0)]
        margin = np.diff(np.sort(logits, axis=0)[-2:], axis=0)[0]
        entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(0) / np.log(len(p))
    else:
        p = 1 / (1 + np.exp(-logits))
        labels = np.zeros(logits.shape[1:], int)
        for value, region in zip((3, 5, 9), logits, strict=True):
            labels[region > 0] = value
        margin = np.abs(logits).min(0)
        both = np.stack([p, 1 - p])
        entropy = (-both * np.log2(np.maximum(both, 1e-30))).sum(0).max(0)
    sure = margin > 1e-4
    assert sure.mean() > 0.999
    np.testing.assert_array_equal(seg.array[sure], labels[sure])
    assert len(np.unique(labels)) > 2
    assert seg.probabilities is not None
    assert seg.entropy is not None
    assert list(seg.probabilities) == predictor.channel_names
    for found, expected in zip(seg.probabilities.values(), p, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(seg.entropy, 255 * entropy, atol=0.6)


def test_large_planes_are_cut_into_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(labels=LABELS, spacing=None)
    whole = Predictor(thin_network(5, 4), plan, "cpu").predict(tilted_scan()).array
    for voxels in (1, 7, 230):
        monkeypatch.setattr(restore_labels, "SHEARED_CHUNK_VOXELS", voxels)
        regions = list(restore_labels._regions((14, 19, 11), restore_labels.voxels_at_once(5, 4)))
        covered = np.zeros((14, 19, 11), int)
        for region in regions:
            covered[region] += 1
        assert (covered == 1).all()
        assert max(np.prod([part.stop - part.start for part in region]) for region in regions) <= max(voxels, 11)
        np.testing.assert_array_equal(Predictor(thin_network(5, 4), plan, "cpu").predict(tilted_scan()).array, whole)


def test_a_warning_states_that_cubic_interpolation_became_linear() -> None:
    plan = small_plan(labels=LABELS)
    for interpolation, lines in (("linear", 0), ("cubic", 1)):
        predictor = Predictor(thin_network(5, 4), plan, "cpu", interpolation=interpolation)  # type: ignore[arg-type]
        notes = predictor.predict(tilted_scan()).provenance["warnings"]
        assert [("restored by linear interpolation" in note) for note in notes] == [True] * lines
