"""Small NIfTI files, written by nibabel."""

from pathlib import Path

import nibabel as nib
import numpy as np


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, version: int = 1) -> Path:
    image_class = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    nib.save(image_class(array, np.eye(4) if affine is None else affine), path)
    return path


def random_array(shape: tuple[int, ...], dtype: str = "int16") -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return rng.integers(0, 100, shape).astype(dtype)
