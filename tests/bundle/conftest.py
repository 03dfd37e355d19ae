from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle.tiny_bundles import add_random_weights, change_plan, copy_bundle
from monai.bundle import run


@pytest.fixture
def bundle(tmp_path) -> Path:
    """Return the phantom bundle with a network small enough for a test and random weights, recorded as promoted."""
    folder = copy_bundle("phantom_cells_segmentation", tmp_path / "tiny_segmentation")
    change_plan(folder, {"channels": [4, 8, 8], "strides": [2, 2]}, patch=[16, 16, 16], tile=[16, 16, 16])
    add_random_weights(folder)
    return folder


@pytest.fixture
def scan(tmp_path) -> Path:
    """Write an oblique, flipped, anisotropic scan that is larger than a tile, with permuted axes."""
    rotation = np.array([[0.0, -0.98, 0.199], [1.0, 0.0, 0.0], [0.0, -0.199, -0.98]])
    affine = np.eye(4)
    affine[:3, :3] = rotation * [1.1, 0.9, 1.9]
    affine[:3, 3] = [-20, 13, 40]
    array = np.random.default_rng(0).normal(size=(21, 34, 19)).astype(np.float32)
    path = tmp_path / "scans" / "case_a.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def run_inference(tmp_path) -> Callable[..., Path]:
    """Return a function that predicts the scans of a folder by MONAI's runner and returns the folder of label maps."""

    def predict(bundle: Path, scans: Path) -> Path:
        run(
            config_file=str(bundle / "configs" / "inference.json"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=False,
            bundle_root=str(bundle),
            dataset_dir=str(scans),
            output_dir=str(tmp_path / "out"),
        )
        return tmp_path / "out"

    return predict
