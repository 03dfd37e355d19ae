"""Scans on disk, for the tests of predicting many files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(3):
        array = np.random.default_rng(i).normal(size=(8, 9, 10 + i)).astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])), folder / f"case{i}.nii.gz")
    return folder
