"""Rules about the data: labels, voxel size, normalisation, crops, mirroring, weights between instances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medseg.bundle.train_config import BoundaryWeights
from medseg.errors import OptionError, PlanError
from medseg.planning.data_fingerprint import DataFingerprint
from medseg.planning.planned_training import Decisions, Wishes

# An axis whose voxels are more than this many times as large as the others' is treated on its own (nnU-Net's value).
ANISOTROPY = 3
MICROSCOPY = {"EM", "microscopy", "fluorescence"}
MOST_LABELS = 255  # label maps are uint8 in a training, and 255 is the ignored label


def labels_of(data: DataFingerprint, decisions: Decisions) -> dict[str, int]:
    """Return the value of each label by name, after checking that they can be trained.

    Raises:
        PlanError: there are too many.
    """
    if len(data.labels) > MOST_LABELS:
        raise PlanError(
            f"{data.name}: found {len(data.labels)} labels, expected at most {MOST_LABELS}; merge some "
            "of them with file_values in the manifest"
        )
    absent = [name for name, facts in data.labels.items() if not facts.cases]
    rare = [name for name, facts in data.labels.items() if 0 < facts.cases < min(3, data.num_cases)]
    if absent:
        decisions.warn(
            f"no case contains {', '.join(absent[:5])}{' and others' if len(absent) > 5 else ''}; the network "
            "cannot learn them"
        )
    if rare and data.num_cases >= 3:
        decisions.warn(f"fewer than 3 cases contain {', '.join(rare[:5])}{' and others' if len(rare) > 5 else ''}")
    return {name: facts.value for name, facts in data.labels.items()}


def dimensions(data: DataFingerprint, wishes: Wishes, decisions: Decisions) -> tuple[int, int | None]:
    """Return the dimensions of the network, and the axis across which volumes are cut into slices.

    Raises:
        OptionError: the images are 2D, and 3D was asked for.
    """
    wanted = wishes.configuration
    if data.spatial_dims == 2:
        if wanted == "3d":
            raise OptionError("--configuration 3d: the images are 2D; leave the option out")
        decisions.add("dimensions", 2, "The images are two-dimensional.")
        return 2, None
    if wanted == "2d":
        target = target_spacing(data)
        axis = max(range(3), key=lambda a: (target[a], a))
        decisions.add("dimensions", 2, f"Slices across {'RAS'[axis]}, the axis with the largest voxels, as you asked.")
        return 2, axis
    decisions.add("dimensions", 3, "The images are volumes.")
    return 3, None


def has_target_spacing(
    data: DataFingerprint, spacing: Sequence[float], axes: Sequence[int], decisions: Decisions
) -> bool:
    """Return True if cases are resampled to `spacing`, the target along `axes`."""
    if not data.has_physical_spacing:
        decisions.add("spacing", "as stored", "The files hold pictures, whose pixels have no physical size.")
        return False
    median = np.median(np.array(data.spacings), axis=0)
    value = " × ".join(f"{s:.4g}" for s in spacing) + " mm"
    if all(math.isclose(s, median[axis], rel_tol=1e-4) for s, axis in zip(spacing, axes, strict=True)):
        decisions.add("spacing", value, "It is the median voxel size of the cases.")
    else:
        decisions.add(
            "spacing", value,
            f"It is the median voxel size, but along the axis with voxels of {max(median):.4g} mm the 10th "
            "percentile, because the median would blur the cases with thinner slices.",
        )  # fmt: skip
    return True


def explain_orientation(data: DataFingerprint, orientation: str, slice_axis: int | None, decisions: Decisions) -> None:
    """Give the reason for the order and the directions of the axes."""
    if slice_axis is not None:
        reason = f"Slices lie across {'RAS'[slice_axis]}, and every scan is turned the same way."
    elif data.spatial_dims == 2:
        reason = "Pictures keep the axes of their files."
    else:
        reason = "Every scan is turned to one orientation without interpolation, whatever its file stores."
    decisions.add("orientation", orientation, reason)


def normalization(data: DataFingerprint, decisions: Decisions) -> list[dict[str, Any]]:
    """Return the scheme of each channel, by its modality."""
    schemes: list[dict[str, Any]] = []
    reasons: list[str] = []
    for channel, (_, modality) in enumerate(data.channels):
        facts = data.intensities[channel] if data.intensities else None
        if modality == "CT" and facts is not None:
            schemes.append({
                "scheme": "ct", "lower": round(facts.lower, 4), "upper": round(facts.upper, 4),
                "mean": round(facts.mean, 4), "std": round(max(facts.std, 1e-6), 4),
            })  # fmt: skip
            reasons.append(
                "Hounsfield units mean the same in every scan, so they are clipped to the percentiles 0.5 and 99.5 "
                f"of the labelled voxels ({facts.lower:.4g} to {facts.upper:.4g})."
            )
        elif modality == "RGB":
            largest = data.largest_values[channel] if data.largest_values else 255
            upper = 255.0 if largest <= 255 else 65535.0
            schemes.append({"scheme": "window", "lower": 0.0, "upper": upper, "clip": False})
            reasons.append(f"Colours keep their relation, so 0 to {upper:.0f} become 0 to 1.")
        elif data.nonzero_fraction < 3 / 4 and data.has_physical_spacing:
            schemes.append({"scheme": "z_score", "foreground": "nonzero"})
            reasons.append(
                f"{modality} has no absolute scale, and over a quarter of the images is empty, so each image gets "
                "mean 0 and deviation 1 over the voxels that are not 0."
            )
        else:
            schemes.append({"scheme": "z_score"})
            reasons.append(f"{modality} has no absolute scale, so each image gets mean 0 and deviation 1.")
    value = ", ".join(dict.fromkeys(str(scheme["scheme"]) for scheme in schemes))
    decisions.add("normalisation", value, " ".join(dict.fromkeys(reasons)))
    return schemes


def crop_ratios(data: DataFingerprint, decisions: Decisions) -> list[float]:
    """Return a third of the patches for the background, and equal parts of the rest for the labels that exist."""
    present = [bool(facts.cases) for facts in data.labels.values()]
    foreground = sum(present[1:])
    ratios = [foreground / 2, *(float(is_present) for is_present in present[1:])]
    decisions.add(
        "crop ratios", f"background {ratios[0]:g}, each label 1",
        "Two thirds of the patches are centred on a label, each label equally often, so that rare ones are seen.",
    )  # fmt: skip
    return ratios


def mirror_axes(data: DataFingerprint, dims: int, decisions: Decisions) -> list[int]:
    """Return the axes along which a mirrored image is as likely as the image."""
    modalities = {modality for _, modality in data.channels}
    if modalities <= MICROSCOPY:
        decisions.add("mirroring", "all axes", "A specimen under a microscope has no preferred direction.")
        return list(range(dims))
    if modalities <= {"RGB", "grey"}:
        decisions.add("mirroring", "left and right", "A mirrored picture is possible, one upside down usually is not.")
        return [0]
    decisions.add("mirroring", "none", "The body is not symmetric, and left must stay left.")
    return []


def air_below(data: DataFingerprint, decisions: Decisions) -> float | None:
    """Return the intensity below which no tile is predicted; None for none."""
    if data.air_below is not None:
        decisions.add(
            "air below", f"{data.air_below:g} HU",
            "No labelled voxel lies below, so prediction skips tiles that hold nothing but air.",
        )  # fmt: skip
    elif any(modality == "CT" for _, modality in data.channels):
        decisions.add("air below", "none", "Labelled voxels are as dark as air, or no scan holds much of it.")
    return data.air_below


def boundary_weights(data: DataFingerprint, wishes: Wishes, decisions: Decisions) -> BoundaryWeights | None:
    """Return the weights between instances; None if the labels are not crowds of objects."""
    facts = [facts for name, facts in data.labels.items() if name != next(iter(data.labels))]
    crowded = [f for f in facts if f.pieces >= 8 and f.crowding > 0.1]
    w0, sigma = (10.0, 5.0) if data.spatial_dims == 2 else (5.0, 2.0)
    if wishes.configuration == "2d" and data.spatial_dims == 3:
        return None
    if data.has_instance_maps and data.instances_touch:
        reason = "The instance maps hold objects that touch, and the weights teach the network to part them."
    elif crowded:
        reason = (
            f"Labels have {max(f.pieces for f in crowded):.0f} pieces with narrow gaps between them, and the "
            "weights (Ronneberger et al. 2015, Eq. 2) teach the network to keep the gaps."
        )
    else:
        decisions.add("boundary weights", "none", "The labels are not crowds of objects that touch.")
        return None
    decisions.add("boundary weights", f"w0 = {w0:g}, σ = {sigma:g} voxels", reason)
    return BoundaryWeights(w0, sigma, data.has_instance_maps)


def target_spacing(data: DataFingerprint) -> list[float]:
    """Return the median voxel size per axis, with nnU-Net's exception for an axis that is far coarser.

    If one axis has voxels more than three times as large as the others, and fewer than a third of their number, the
    10th percentile replaces the median along it, but never less than the other axes' voxel size.
    """
    spacings = np.array(data.spacings, dtype=float)
    sizes = np.median(np.array(data.nonzero_shapes, dtype=float), axis=0)
    target = np.median(spacings, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != worst]
    is_coarse = target[worst] > ANISOTROPY * max(target[others])
    is_short = sizes[worst] * ANISOTROPY < min(sizes[others])
    if is_coarse and is_short:
        target[worst] = max(np.percentile(spacings[:, worst], 10), max(target[others]))
    return [float(s) for s in target]


def median_shape(data: DataFingerprint, spacing: Sequence[float]) -> list[float]:
    """Return the median size of the non-zero part of the images at a voxel size, in voxels."""
    shapes = [
        [max(1, round(n * own / s)) for n, own, s in zip(shape, each, spacing, strict=True)]
        for shape, each in zip(data.nonzero_shapes, data.spacings, strict=True)
    ]
    return [float(n) for n in np.median(np.array(shapes), axis=0)]
