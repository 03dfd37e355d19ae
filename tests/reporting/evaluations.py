"""Small evaluations of generated label maps for the report's tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from medseg.evaluation import ClusterBootstrap, Evaluation, LabelScore, evaluate
from medseg.evaluation.summary import summarise

VARIANTS = 4


def write_image(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write an array as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def blobs(
    rng: np.random.Generator, shape: tuple[int, ...], num_labels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generate an image, its reference, and a slightly different prediction."""
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.0)
    edges = np.quantile(smooth, np.linspace(0.5, 1, num_labels + 1)[:-1])
    reference = np.digitize(smooth, edges).astype(np.uint8)
    moved = smooth + 0.2 * smooth.std() * rng.normal(size=shape)
    prediction = np.digitize(moved, edges).astype(np.uint8)
    image = np.rint(1000 + 400 * smooth / np.abs(smooth).max() + 30 * rng.normal(size=shape)).astype(np.int16)
    return image, reference, prediction


def small_evaluation(
    folder: Path,
    num_cases: int,
    num_labels: int = 2,
    shape: tuple[int, ...] = (12, 10, 8),
    affine: np.ndarray | None = None,
    **options: object,
) -> tuple[Evaluation, dict[str, Path]]:
    """Evaluate cases that share four variants of files; also return the images by case."""
    rng = np.random.default_rng(0)
    written = []
    for variant in range(VARIANTS):
        image, reference, prediction = blobs(rng, shape, num_labels)
        if variant == 1:
            prediction[prediction == num_labels] = 0
        names = zip(("image", "reference", "prediction"), (image, reference, prediction), strict=True)
        written.append({name: write_image(folder / name / f"{variant}.nii.gz", a, affine) for name, a in names})
    cases = [f"case_{number:03d}" for number in range(num_cases)]
    maps = {role: {c: written[i % VARIANTS][role] for i, c in enumerate(cases)} for role in written[0]}
    labels = {f"structure {value}": value for value in range(1, num_labels + 1)}
    given = {"labels": labels, "num_draws": 2000} | options
    return evaluate(maps["prediction"], maps["reference"], **given), maps["image"]


def repeated(evaluation: Evaluation, num_cases: int) -> Evaluation:
    """Repeat the files of an evaluation under other case names, with different numbers and hashes as in real data."""
    rng = np.random.default_rng(0)
    by_case: dict[str, list[LabelScore]] = {}
    for row in evaluation.rows:
        by_case.setdefault(row.case, []).append(row)
    inputs = {entry["case"]: entry for entry in evaluation.summary["inputs"]}
    old = list(by_case)
    names = {f"case_{number:03d}": old[number % len(old)] for number in range(num_cases)}
    rows = [
        replace(row, case=name, patient=name, values={key: v * rng.uniform(0.5, 1) for key, v in row.values.items()})
        for name, case in names.items()
        for row in by_case[case]
    ]
    summary = evaluation.summary | summarise(rows, evaluation.metrics, ClusterBootstrap(list(names), 2000))
    summary |= {"num_cases": num_cases, "num_patients": num_cases}
    hashes = ("prediction_sha256", "reference_sha256")
    summary["inputs"] = [
        inputs[case] | {"case": name} | {key: rng.bytes(32).hex() for key in hashes} for name, case in names.items()
    ]
    return replace(evaluation, rows=rows, summary=summary)
