"""Calibrate the confidence of a bundle on cases that its training did not see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage, optimize

from medseg.bundle.configs import format_json
from medseg.bundle.fingerprint import plan_of_crops
from medseg.bundle.folder import CALIBRATION, RECORD, BundleFolder
from medseg.bundle.loading import load_network
from medseg.datasets import Manifest, case_files, read_manifest
from medseg.errors import BundleError
from medseg.figures import CalibrationBins, calibration_bins
from medseg.inference import Predictor, SlicePredictor
from medseg.inference.confidence import LEVEL, Calibration, VolumeCounts
from medseg.plan import Plan
from medseg.volumes import read_label_map, replacing
from medseg.volumes.files import file_sha256

# Voxels that take part in the fit of the temperature: within this distance of the reference or the prediction, because
# all is certain background further away, and at most so many per case.
NEAR_MM, MAX_VOXELS = 10.0, 10_000
# With fewer cases, the quantiles of an interval are the extremes and say little.
MIN_CASES = 20
TEMPERATURES = (0.1, 20.0)
LEAST_PROBABILITY = 1e-7  # smallest positive number in half precision, about


@dataclass(frozen=True, eq=False)
class CaseVoxels:
    """Voxels of one case near its structures.

    Args:
        log_probabilities: (C, n) natural logarithms at temperature 1.
        channels: (n,) channel of the reference.
    """

    log_probabilities: np.ndarray
    channels: np.ndarray


@dataclass(frozen=True, eq=False)
class CaseCounts:
    """One case as predicted with the temperature.

    Args:
        counts: voxels by probability.
        reference: voxels of each label in the reference.
        dice: true Dice of each label.
    """

    counts: VolumeCounts
    reference: Mapping[str, int]
    dice: Mapping[str, float]


def write_calibration(
    bundle: str | Path,
    data: str | Path,
    manifest: str | Path | None = None,
    fold: int | str | None = None,
) -> Calibration:
    """Fit the confidence of a bundle's weights and write it to `models/calibration.json`.

    Args:
        bundle: folder of the bundle, with its weights.
        data: folder of the data set. Cases whose files are missing are left out, with a warning.
        manifest: name or file of the data set's manifest; by default that of the bundle's train.json.
        fold: the fold that the training left out; by default that of the bundle's record.

    Raises:
        BundleError: no case was left out of the training, the network has overlapping regions, or the bundle names no
            manifest.
        ManifestError: no case is there.
    """
    folder = BundleFolder(Path(bundle))
    manifest = folder.manifest if manifest is None else manifest
    fold = unseen_fold(folder.path / RECORD, folder.read_json(RECORD) if fold is None else {"settings": {"fold": fold}})
    calibration = fit_calibration(folder.path, read_manifest(manifest), data, fold)
    save_calibration(folder, calibration)
    return calibration


def unseen_fold(record_file: Path, record: Mapping[str, Any]) -> int | str:
    """Return the fold that a training left out.

    Raises:
        BundleError: it was trained on all cases, or began with weights whose cases are not known.
    """
    settings = record.get("settings", {})
    fold, started_from = settings.get("fold", "all"), settings.get("init_weights")
    if fold == "all":
        raise BundleError(
            f"{record_file}: the weights were trained on all cases, so none is left to calibrate on; calibrate weights "
            "that were trained without a fold"
        )
    if started_from:
        raise BundleError(
            f"{record_file}: the training began with the weights {started_from}, which may have seen fold {fold}; name "
            "a fold that no training saw"
        )
    return fold


def save_calibration(folder: BundleFolder, calibration: Calibration) -> None:
    """Write a calibration atomically into a bundle's `models/`."""
    with replacing(folder.path / CALIBRATION) as temporary:
        temporary.write_text(format_json(calibration.to_dict()) + "\n", encoding="utf-8")


def fit_calibration(
    bundle: Path, manifest: Manifest, data: str | Path, fold: int | str, weights: Path | None = None
) -> Calibration:
    """Return the calibration of weights on the cases that a fold holds back; see `write_calibration`.

    Each case is predicted twice: for the temperature, and with it for the volumes.

    Args:
        bundle: folder of the bundle.
        manifest: of the data set.
        data: its folder.
        fold: number of the fold.
        weights: weights file; by default the bundle's own.
    """
    folder = BundleFolder(bundle)
    plan = folder.plan
    names: dict[str, str] = {}
    if plan.activation != "softmax":
        raise BundleError(f"{bundle}: only networks with exclusive labels can be calibrated, the plan has sigmoid")
    if plan.regions is not None:
        plan, names = plan_of_crops(plan, manifest)
    cases = case_files(manifest, data, fold, "validation", missing="skip")
    file, digest = folder.checked_weights() if weights is None else (weights, file_sha256(weights))
    create = Predictor if plan.slice_axis is None else SlicePredictor
    model = create(load_network(bundle, file), plan, weights_sha256=[digest], save_probabilities=True)
    voxels = [voxels_of(model, case, manifest) for case in cases]
    temperature = fit_temperature(voxels)
    provisional = Calibration(digest, temperature)
    model.calibration, model.save_probabilities = provisional, False
    counts = [counts_of(model, case, manifest) for case in cases]
    patients = {case.id: case.patient for case in manifest.cases}
    thresholds = fit_thresholds(counts) if len(cases) >= MIN_CASES else {}
    offsets = fit_dice(counts)
    if names:  # the labels of the regions instead of the network's own
        thresholds = {own: thresholds[known] for own, known in names.items() if known in thresholds}
        offsets = {own: offsets[known] for own, known in names.items() if known in offsets}
    return replace(
        provisional,
        thresholds=thresholds,
        dice_offset=offsets,
        cases=len(cases),
        patients=len({patients[case["case"]] for case in cases}),
        data=f"{manifest.name}, fold {fold}",
        measured={
            "ece_before": round(expected_error(voxels, 1.0), 4),
            "ece_after": round(expected_error(voxels, temperature), 4),
        },
    )


def voxels_of(model: Predictor, case: Mapping[str, Any], manifest: Manifest) -> CaseVoxels:
    """Predict a case and return the voxels near its structures; at most 10,000, evenly spread."""
    seg = model.predict(case["image"])
    assert seg.probabilities is not None
    reference, is_known = reference_channels(case, manifest, model.plan)
    near = ndimage.distance_transform_edt(
        (reference == 0) & (seg.array == model.plan.label_values[0]), sampling=seg.scan.grid.spacing
    )
    index = np.flatnonzero((near <= NEAR_MM) & is_known)
    index = index[:: -(-len(index) // MAX_VOXELS) or 1]
    maps = [seg.probabilities[name].ravel()[index].astype(np.float32) for name in model.plan.label_names]
    return CaseVoxels(np.log(np.maximum(np.stack(maps), LEAST_PROBABILITY)), reference.ravel()[index])


def counts_of(model: Predictor, case: Mapping[str, Any], manifest: Manifest) -> CaseCounts:
    """Predict a case with its temperature and compare it with the reference."""
    seg = model.predict(case["image"])
    assert seg.counts is not None
    reference, is_known = reference_channels(case, manifest, model.plan)
    predicted = np.searchsorted(model.plan.label_values, seg.array)
    sizes, dice = {}, {}
    for channel, name in enumerate(model.plan.label_names[1:], 1):
        found, wanted = (predicted == channel) & is_known, reference == channel
        sizes[name] = int(wanted.sum())
        total = sizes[name] + int(found.sum())
        dice[name] = 2 * int((found & wanted).sum()) / total if total else np.nan
    return CaseCounts(seg.counts, sizes, dice)


def reference_channels(case: Mapping[str, Any], manifest: Manifest, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Return the channel of each voxel of a case's reference, and where it is known."""
    array = np.asarray(read_label_map(case["label"]).array)
    channels, is_known = np.zeros(array.shape, dtype=np.int64), np.zeros(array.shape, dtype=bool)
    values = manifest.file_values or {value: value for value in manifest.labels.values()}
    names = {value: name for name, value in manifest.labels.items()}
    for in_file, value in values.items():
        if names.get(value) in plan.labels:
            here = array == in_file
            channels[here] = plan.label_names.index(names[value])
            is_known |= here
    return channels, is_known


def fit_temperature(voxels: Sequence[CaseVoxels]) -> float:
    """Return the temperature with the smallest mean negative log likelihood; every case counts the same."""
    tensors = [(torch.from_numpy(v.log_probabilities), torch.from_numpy(v.channels)) for v in voxels if len(v.channels)]

    def loss(log_temperature: float) -> float:
        scale = float(np.exp(-log_temperature))
        losses = [torch.nn.functional.cross_entropy((scale * logits).T, channels) for logits, channels in tensors]
        return float(torch.stack(losses).mean())

    bounds = (np.log(TEMPERATURES[0]), np.log(TEMPERATURES[1]))
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3})
    return round(float(np.exp(found.x)), 4)


def fit_thresholds(counts: Sequence[CaseCounts], level: float = LEVEL) -> dict[str, list[float]]:
    """Return, by label, the logits of the thresholds between which `level` of the references' volumes lie.

    The quantiles are those at (n + 1) q of the ordered cases, which hold for a new case on average.
    """
    thresholds = {}
    for name in counts[0].reference:
        scores = [case.counts.threshold_of(name, case.reference[name]) for case in counts]
        low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2], method="weibull")
        thresholds[name] = [round(float(high), 4), round(float(low), 4)]
    return thresholds


def fit_dice(counts: Sequence[CaseCounts]) -> dict[str, float]:
    """Return, by label, the median difference between the true and the expected Dice."""
    offsets = {}
    for name in counts[0].reference:
        differences = [case.dice[name] - case.counts.expected_dice(name) for case in counts]
        known = [d for d in differences if np.isfinite(d)]
        if known:
            offsets[name] = round(float(np.median(known)), 4)
    return offsets


def expected_error(voxels: Sequence[CaseVoxels], temperature: float) -> float:
    """Return the ECE of the foreground labels, mean over the labels, of the voxels near the structures."""
    num_channels = len(voxels[0].log_probabilities)
    return float(np.mean([bins.expected_error for bins in _bins(voxels, temperature, num_channels)]))


def _bins(voxels: Sequence[CaseVoxels], temperature: float, num_channels: int) -> Iterator[CalibrationBins]:
    for channel in range(1, num_channels):
        total: CalibrationBins | None = None
        for case in voxels:
            p = torch.from_numpy(case.log_probabilities / temperature).softmax(0)[channel].numpy()
            bins = calibration_bins(p, case.channels == channel)
            total = bins if total is None else total + bins
        assert total is not None
        yield total
