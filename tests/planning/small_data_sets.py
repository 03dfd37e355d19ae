"""Small data sets with a bright sphere per case, and the folders and manifests of such data sets."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import yaml


def write_case(root: Path, case: str, image: np.ndarray, label: np.ndarray, spacing=(1.0, 1.0, 1.0)) -> None:
    for folder, array in (("images", image), ("labels", label)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), root / folder / f"{case}.nii.gz")


def write_manifest(root: Path, cases: list[str], labels: dict[str, int], **values: object) -> Path:
    content = {
        "schema_version": 1,
        "name": "spheres",
        "spatial_dims": 3,
        "channels": [{"name": "mr", "modality": "MR"}],
        "labels": labels,
        "files": {"image": "images/{case}.nii.gz", "label": "labels/{case}.nii.gz"},
        "cases": cases,
    }
    path = root / "manifest.yaml"
    path.write_text(yaml.safe_dump(content | values))
    return path


def spheres(root: Path, count: int = 6, shape=(20, 24, 16), seed: int = 0) -> Path:
    """Write cases with a bright sphere at a random place, and return their manifest."""
    rng = np.random.default_rng(seed)
    cases = [f"case_{n}" for n in range(count)]
    axes = np.indices(shape)
    for case in cases:
        centre = np.array([rng.uniform(6, n - 6) for n in shape]).reshape(3, 1, 1, 1)
        label = (((axes - centre) ** 2).sum(axis=0) < 25).astype(np.uint8)
        write_case(root, case, (rng.normal(0, 1, shape) + 4 * label).astype(np.float32), label)
    return write_manifest(root, cases, {"background": 0, "sphere": 1})
