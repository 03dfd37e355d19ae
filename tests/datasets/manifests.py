"""A small correct manifest and datasets that match it, in which tests break one thing at a time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medseg.datasets import Manifest, read_manifest
from medseg.volumes import Grid, Volume, write_volume

IDS = ["a1", "a2", "b1", "c1", "d1", "e1"]
CONTENT: dict[str, Any] = {
    "schema_version": 1,
    "name": "tiny",
    "description": "six tiny cases",
    "spatial_dims": 3,
    "channels": [{"name": "t1", "modality": "MR"}],
    "labels": {"background": 0, "lesion": 1},
    "files": {"image": "images/{case}.nii.gz", "label": "labels/{case}.nii.gz"},
    "cases": [{"id": "a1", "patient": "a"}, {"id": "a2", "patient": "a"}, "b1", "c1", "d1", "e1"],
    "folds": {0: ["e1"], 1: ["a1", "a2"], 2: ["b1"], 3: ["c1", "d1"]},
    "test_fold": 0,
    "source": {"archive": {"folder": "Tiny", "image": "imagesTr/{case}.nii.gz", "label": "labelsTr/{case}.nii.gz"}},
    "licence": "CC0-1.0",
    "citations": ["Nobody 2020"],
}
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def changed(**changes: Any) -> dict[str, Any]:
    """Return a copy of the content with top-level keys replaced."""
    return copy.deepcopy(CONTENT) | changes


def splits(training: Any, validation: Any) -> dict[str, Any]:
    """Return content with one split instead of folds."""
    return changed(folds={}, test_fold=None, splits={0: {"training": training, "validation": validation}})


def write_manifest(folder: Path, content: Any) -> Path:
    """Write the content as tiny.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def load(folder: Path, **changes: Any) -> Manifest:
    """Write and read a changed manifest."""
    return read_manifest(write_manifest(folder, changed(**changes)))


def write_case(
    root: Path,
    case_id: str,
    image: np.ndarray | None = None,
    label: np.ndarray | None = None,
    label_affine: np.ndarray = AFFINE,
    folders: tuple[str, str] = ("images", "labels"),
) -> None:
    """Write one case of 4×5×6 voxels."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(4, 5, 6)).astype(np.float32) if image is None else image
    label = rng.integers(0, 2, (4, 5, 6)).astype(np.uint8) if label is None else label
    for folder, array, affine in [(folders[0], image, AFFINE), (folders[1], label, label_affine)]:
        write_volume(root / folder / f"{case_id}.nii.gz", array, Volume(array, Grid(array.shape, affine)))
