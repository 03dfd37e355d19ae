"""Writing: nothing is left of a file that could not be written."""

from pathlib import Path

import numpy as np
import pytest
from volumes.nifti_files import random_array, save

from medseg.errors import GeometryError, VolumeError
from medseg.volumes import read_volume, write_volume


def test_a_refused_output_leaves_no_file(tmp_path: Path) -> None:
    like = read_volume(save(tmp_path / "a.nii", random_array((3, 4, 5))))
    with pytest.raises(GeometryError, match=r"not written: array shape \(3, 4, 4\) differs from \(3, 4, 5\)"):
        write_volume(tmp_path / "b.nii", np.zeros((3, 4, 4)), like)
    with pytest.raises(VolumeError, match="complex128 voxels cannot be stored"):
        write_volume(tmp_path / "b.nii", np.zeros((3, 4, 5), complex), like)
    (tmp_path / "file").touch()
    with pytest.raises(VolumeError, match="could not be written"):
        write_volume(tmp_path / "file" / "b.nii", like.array, like)
    (tmp_path / "c.nii").mkdir()
    with pytest.raises(VolumeError, match="a folder is in the way"):
        write_volume(tmp_path / "c.nii", like.array, like)
    with pytest.raises(VolumeError, match="not an image name"):
        write_volume(tmp_path / "d.bmp", like.array, like)
    with pytest.raises(VolumeError, match="JPEG"):
        write_volume(tmp_path / "d.jpeg", like.array, like)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "c.nii", "file"]
