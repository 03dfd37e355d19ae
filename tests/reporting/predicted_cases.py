"""Results of predictions as `predict_files` returns them, with generated scans and label maps on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from inference.plans import small_plan
from PIL import Image
from reporting.evaluations import write_image
from scipy import ndimage

from medseg.inference import CaseResult
from medseg.inference.plausibility import Fingerprint, LabelStatistics
from medseg.plan import Plan

PLAN = small_plan(name="balls_segmentation")
SHAPE, AFFINE = (40, 36, 32), np.diag([1.0, 1.0, 1.5, 1.0])
VOXEL_ML = 1.5 / 1000


def ball(radius: float, center: tuple[int, ...], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    index = np.indices(shape).reshape(len(shape), -1).T
    return (((index - center) ** 2).sum(1) <= radius**2).reshape(shape)


def labels_of(front: float, back: float) -> np.ndarray:
    """Label map with a ball of each structure; a radius of 0 leaves it out."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    for value, (radius, center) in enumerate(((front, (12, 18, 16)), (back, (28, 18, 16))), 1):
        if radius:
            array[ball(radius, center)] = value
    return array


def scan_of(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 20, labels.shape)
    image = ndimage.gaussian_filter(200.0 * (labels > 0), 0.7) + 100 + noise
    return np.rint(image).astype(np.int16)


def done(folder: Path, case: str, front: float, back: float, **values: object) -> CaseResult:
    """Write a scan, its segmentation and the record, and return the result."""
    labels = labels_of(front, back)
    scan = write_image(folder / "scans" / f"{case}.nii.gz", scan_of(labels), AFFINE)
    output = write_image(folder / "out" / f"{case}.nii.gz", labels, AFFINE)
    record = {"bundle": "balls_segmentation", "weights_sha256": ["ab" * 32], "plan_sha256": "cd" * 32,
              "backend": "torch", "device": "cpu", "precision": "fp32", "versions": {"medseg": "0"}}  # fmt: skip
    output.with_name(f"{case}.json").write_text(json.dumps(record))
    counts = np.bincount(labels.ravel(), minlength=3)
    sizes = {name: float(counts[value] * VOXEL_ML) for name, value in (("front", 1), ("back", 2))}
    given = {"status": "suspicious" if values.get("suspicions") else "done", "seconds": 1.5, "volumes_ml": sizes,
             "inputs": [str(scan)]} | values  # fmt: skip
    return CaseResult(case, output=str(output), **given)  # type: ignore[arg-type]


def failed(folder: Path, case: str, message: str, content: bytes | None = None) -> CaseResult:
    """Return the result of a scan that failed: a readable one, or a file with this content."""
    path = folder / "scans" / f"{case}.nii.gz"
    if content is None:
        write_image(path, scan_of(labels_of(6, 0)), AFFINE)
    else:
        path.write_bytes(content)
    return CaseResult(case, "failed", message=message, seconds=0.2, inputs=[str(path)])


def fingerprint(low: float = 0.5, high: float = 1.5) -> Fingerprint:
    volumes = {"smallest": low, "0.5%": low, "median": (low + high) / 2, "99.5%": high, "largest": high}
    statistics = LabelStatistics(volumes, absent=0, pieces=1, stray=0.0, at_border=0.0)
    return Fingerprint(9, {}, {}, {"front": statistics, "back": statistics})


def cohort(folder: Path) -> list[CaseResult]:
    """Ten results: seven usual ones, a suspicious one, and two failed scans of which one cannot be read."""
    results = [done(folder, f"usual_{n}", 5.2 + 0.1 * n, 5.5) for n in range(6)]
    results.append(done(folder, "skipped", 5.4, 5.6, status="skipped", message="finished by an earlier run"))
    results.append(failed(folder, "no_head", "no_head.nii.gz: the regions were not found"))
    results.append(done(folder, "tiny", 2.0, 5.5, suspicions=["front: 0.05 ml, but 0.50 to 1.50 ml in training"]))
    results.append(failed(folder, "broken", "broken.nii.gz: is not a NIfTI file", b"no image"))
    return results


def flat_plan() -> Plan:
    return small_plan(
        name="stripes_segmentation", spatial_dims=2, orientation="RA", spacing=None, patch=[16, 16], tile=[16, 16],
        labels={"background": 0, "stripe": 1},
    )  # fmt: skip


def flat_cohort(folder: Path) -> list[CaseResult]:
    """Four PNG images of which a quarter, half, and so on is the structure."""
    results = []
    for width in (8, 16, 17, 24):
        labels = np.zeros((24, 32), dtype=np.uint8)
        labels[:, :width] = 1
        paths = [folder / name / f"width_{width}.png" for name in ("scans", "out")]
        for path, array in zip(paths, (60 + 120 * labels, labels), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(path)
        volumes = {"stripe": int(labels.sum()) / 1000}
        results.append(
            CaseResult(paths[0].stem, "done", str(paths[1]), volumes_ml=volumes, inputs=[str(paths[0])])
        )  # fmt: skip
    return results
