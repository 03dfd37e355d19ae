"""Compute the fingerprint of a bundle from its training cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medseg.bundle.configs import format_json
from medseg.bundle.folder import FINGERPRINT, BundleFolder
from medseg.datasets import Manifest, case_files, read_manifest
from medseg.inference.plausibility import (
    CROP_MM,
    PATIENT_MODALITIES,
    QUANTILES,
    Fingerprint,
    Measurement,
    extent_mm,
    measure,
    statistics_of,
)
from medseg.plan import Plan
from medseg.volumes import read_label_map, read_volume, replacing

PERCENTILES = (0.5, 50.0, 99.5)


def write_fingerprint(
    bundle: str | Path,
    data: str | Path,
    manifest: str | Path | None = None,
    fold: int | str = "all",
    for_whole_scans: str = "",
) -> Fingerprint:
    """Compute the fingerprint of a bundle's training cases and write it to `models/fingerprint.json`.

    Args:
        bundle: folder of the bundle.
        data: folder of the data set. Cases whose files are missing are left out, with a warning.
        manifest: name or file of the data set's manifest; by default that of the bundle's train.json.
        fold: the fold that was not trained on, or "all".
        for_whole_scans: name of a bundle to which users with whole scans are referred.

    Raises:
        BundleError: the bundle names no manifest.
        ManifestError: no case is there.
    """
    folder = BundleFolder(Path(bundle))
    manifest = folder.manifest if manifest is None else manifest
    fingerprint = compute_fingerprint(folder.plan, read_manifest(manifest), data, fold, for_whole_scans)
    with replacing(folder.path / FINGERPRINT) as temporary:
        temporary.write_text(format_json(fingerprint.to_dict()) + "\n", encoding="utf-8")
    return fingerprint


def compute_fingerprint(
    plan: Plan, manifest: Manifest, data: str | Path, fold: int | str = "all", for_whole_scans: str = ""
) -> Fingerprint:
    """Return the fingerprint of training cases; see `write_fingerprint`.

    Raises:
        ManifestError: no case is there.
    """
    if plan.regions is not None:
        # The network's own labels are measured, and each region's labels get their statistics.
        network_plan, names = plan_of_crops(plan, manifest)
        return compute_fingerprint(network_plan, manifest, data, fold).renamed(names)
    has_volume = plan.spatial_dims == 3 or plan.slice_axis is not None
    extents, spacings, levels = [], [], []
    measured: dict[str, list[Measurement]] = {name: [] for name in plan.structures}
    has_units = any(channel["modality"] == "CT" for channel in plan.channels)
    for case in case_files(manifest, data, fold, missing="skip"):
        label = read_label_map(case["label"])
        array = np.asarray(label.array)
        if manifest.file_values:
            array = _mapped(array, manifest.file_values)
        for name, measurement in measure(array, plan.structures, label.grid).items():
            measured[name].append(measurement)
        extents.append(extent_mm(label.grid))
        spacings.append(label.grid.spacing)
        if has_units:
            images = case["image"] if isinstance(case["image"], list | tuple) else [case["image"]]
            levels.append([np.percentile(read_volume(Path(image)).array, PERCENTILES) for image in images])
    is_cropped = all(channel["modality"] in PATIENT_MODALITIES for channel in plan.channels)
    return Fingerprint(
        len(extents),
        _quantiles(extents) if has_volume else {},
        _quantiles(spacings) if has_volume else {},
        {name: statistics_of(each, has_volume) for name, each in measured.items()},
        [_quantiles([case[channel] for case in levels]) for channel in range(plan.in_channels)] if has_units else None,
        is_cropped and bool(np.max(extents) < CROP_MM),
        for_whole_scans,
    )


def plan_of_crops(plan: Plan, manifest: Manifest) -> tuple[Plan, dict[str, str]]:
    """Return the plan of the network inside a plan's regions, and the network's label of each label of the plan.

    Args:
        plan: with regions.
        manifest: of the data that the network was trained on.
    """
    assert plan.regions is not None
    labels = {name: manifest.labels[name] for name in plan.output_names}
    names = {own: known for box in plan.regions["boxes"] for own, known in zip(box["labels"], labels, strict=True)}
    del names["background"]
    return replace(plan, regions=None, labels=labels), names


def _quantiles(values: Sequence[Sequence[float] | np.ndarray]) -> dict[str, list[float]]:
    """Return quantiles per column."""
    table = np.array(values, dtype=np.float64)
    return {name: [round(float(v), 4) for v in np.quantile(table, q, axis=0)] for name, q in QUANTILES.items()}


def _mapped(array: np.ndarray, file_values: Mapping[int, int]) -> np.ndarray:
    mapped = np.zeros(array.shape, dtype=np.int64)
    for found, value in file_values.items():
        mapped[array == found] = value
    return mapped
