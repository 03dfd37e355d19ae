"""The promoted weights of the 3D U-Net on real scans."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import medseg
from medseg.evaluation import case_dice

BUNDLE = Path(__file__).parents[2] / "bundles" / "hippocampus_unet3d_segmentation"
CASES = ["hippocampus_003", "hippocampus_245"]

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def model():
    return medseg.load(BUNDLE, backend="torch", precision="fp32")  # as MONAI's runner, for equal labels


@pytest.mark.parametrize("case", CASES)
def test_segmentations_of_real_scans_have_the_grid_of_the_scan(model, shared_data, case):
    scan = shared_data / "hippocampus" / "images" / f"{case}.nii.gz"
    reference = nib.load(shared_data / "hippocampus" / "labels" / f"{case}.nii.gz")
    segmentation = model.predict(scan)
    assert segmentation.array.shape == reference.shape
    np.testing.assert_array_equal(segmentation.affine, nib.load(scan).affine)
    # The weights were trained on these cases. A broken pipeline would score far lower, a new case a little lower.
    dice = case_dice(segmentation.array, np.asarray(reference.dataobj).astype(np.uint8), [1, 2])
    assert min(dice) > 0.75
    voxel_ml = abs(np.linalg.det(segmentation.affine)) / 1000
    assert segmentation.volumes_ml()["anterior"] == pytest.approx((segmentation.array == 1).sum() * voxel_ml)


def test_the_bundle_run_gives_the_same_labels(model, shared_data, tmp_path, run_inference):
    scans = tmp_path / "scans"
    scans.mkdir()
    for case in CASES:
        (scans / f"{case}.nii.gz").symlink_to(shared_data / "hippocampus" / "images" / f"{case}.nii.gz")
    out = run_inference(BUNDLE, scans)
    for case in CASES:
        by_bundle = np.asarray(nib.load(out / f"{case}_seg.nii.gz").dataobj)
        assert np.array_equal(by_bundle, model.predict(scans / f"{case}.nii.gz").array)
