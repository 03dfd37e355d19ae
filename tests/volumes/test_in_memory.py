"""Images in memory: every kind of source gives the same volume."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from volumes.affines import affine_for, rotation_z

from medseg.errors import GeometryError, VolumeError
from medseg.volumes import as_channels, as_volume, read_volume, write_volume
from medseg.volumes.itk import to_simpleitk

AFFINE = rotation_z(12) @ affine_for("LAS")


def test_every_kind_of_source_gives_the_same_volume(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    plain = as_volume((array, AFFINE))
    path = write_volume(tmp_path / "a.nii.gz", array, plain)
    for source in (path, str(path), read_volume(path), nib.load(path), to_simpleitk(array, plain.grid)):
        volume = as_volume(source)
        np.testing.assert_array_equal(volume.array, array)
        assert volume.grid.displacement_mm(plain.grid) < 1e-5


def test_a_nibabel_image_keeps_its_codes(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), AFFINE)
    image.set_sform(AFFINE, code=4)
    image.set_qform(AFFINE, code=2)
    path = write_volume(tmp_path / "a.nii", np.zeros((3, 4, 5), np.uint8), as_volume(image))
    header = nib.load(path).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 2)


def test_channels_of_every_kind_of_source() -> None:
    array = np.arange(120, dtype=np.int16).reshape(2, 3, 4, 5)
    grid = as_volume((array[0], AFFINE)).grid
    vector = sitk.Compose([to_simpleitk(part, grid) for part in array])
    sources = [
        (array, AFFINE),
        nib.Nifti1Image(np.moveaxis(array, 0, -1), AFFINE),
        vector,
        [(part, AFFINE) for part in array],
        tuple(nib.Nifti1Image(part, AFFINE) for part in array),
    ]
    for source in sources:
        volumes = as_channels(source, spatial_dims=3)
        np.testing.assert_array_equal([volume.array for volume in volumes], array)
        assert all(volume.grid.displacement_mm(grid) < 1e-5 for volume in volumes)
    with pytest.raises(VolumeError, match="2 channels"):
        as_volume(vector)


def test_other_objects_are_refused() -> None:
    with pytest.raises(VolumeError, match="list"):
        as_volume([1, 2])
    with pytest.raises(VolumeError, match="2 or 3 axes"):
        as_volume((np.zeros((2, 3, 4, 5)), np.eye(4)))
    with pytest.raises(VolumeError, match="complex128 voxels"):
        as_volume((np.zeros((2, 3, 4), complex), np.eye(4)))
    with pytest.raises(VolumeError, match="24 of 24 voxels are NaN"):
        as_volume((np.full((2, 3, 4), np.nan), np.eye(4)))
    with pytest.raises(GeometryError, match="singular"):
        as_volume((np.zeros((2, 3, 4)), np.zeros((4, 4)) + np.diag([0, 0, 0, 1])))
