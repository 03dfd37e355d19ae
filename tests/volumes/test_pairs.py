"""NIfTI and Analyze images whose header and voxels are two files: nibabel is the oracle."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from volumes.affines import affine_for, rotation_z
from volumes.nifti_files import random_array

from medseg.errors import VolumeError
from medseg.volumes import as_volume, format_of, read_grid, read_volume, stem_of, write_volume

AFFINE = rotation_z(20) @ affine_for("PIR")


@pytest.mark.parametrize("suffix", [".hdr", ".hdr.gz"])
@pytest.mark.parametrize("pair", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_nifti_pairs_are_read_as_nibabel_reads_them(tmp_path: Path, pair: type, suffix: str) -> None:
    image = pair(random_array((5, 7, 3)), AFFINE)
    image.header.set_slope_inter(2, -3)
    path = tmp_path / f"a{suffix}"
    nib.save(image, path)
    volume, expected = read_volume(path), nib.load(path)
    np.testing.assert_array_equal(volume.array, expected.get_fdata())
    np.testing.assert_array_equal(volume.grid.affine, expected.affine)
    assert read_grid(path) == volume.grid
    assert stem_of(path) == "a"
    again = nib.load(write_volume(tmp_path / "out.nii.gz", random_array((5, 7, 3), "uint8"), volume))
    np.testing.assert_array_equal(again.affine, expected.affine)
    assert type(again).__name__ == pair.__name__.replace("Pair", "Image")
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert again.header[field] == expected.header[field]


def test_a_pair_in_memory_keeps_its_codes(tmp_path: Path) -> None:
    image = nib.Nifti1Pair(random_array((3, 4, 5)), AFFINE)
    image.set_sform(AFFINE, code=4)
    again = nib.load(write_volume(tmp_path / "a.nii", random_array((3, 4, 5)), as_volume(image)))
    np.testing.assert_array_equal(again.affine, image.affine)
    assert int(again.header["sform_code"]) == 4


@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Spm99AnalyzeImage, nib.Spm2AnalyzeImage])
def test_analyze_images_are_read_as_nibabel_reads_them(tmp_path: Path, kind: type) -> None:
    image = kind(random_array((5, 7, 3)), np.diag([-2.0, 3, 4, 1]))
    path = tmp_path / "a.hdr"
    nib.save(image, path)
    has_mat = (tmp_path / "a.mat").exists()  # SPM's formats write the affine beside the image
    expected = nib.load(path)
    volume = read_volume(path, is_quiet=True)
    np.testing.assert_array_equal(volume.array, expected.get_fdata())
    np.testing.assert_array_equal(volume.grid.affine, expected.affine)
    assert bool(volume.notes) is not has_mat
    again = nib.load(write_volume(tmp_path / "out.nii", random_array((5, 7, 3)), volume))
    np.testing.assert_allclose(again.affine, expected.affine, atol=1e-6)


def test_incomplete_pairs(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(random_array((5, 7, 3)), AFFINE), tmp_path / "a.hdr")
    voxels = (tmp_path / "a.img").read_bytes()
    (tmp_path / "a.img").write_bytes(voxels[:-10])
    with pytest.raises(VolumeError, match=r"a\.img: truncated"):
        read_volume(tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    with pytest.raises(VolumeError, match=r"a\.hdr: .*a\.img.* missing"):
        read_volume(tmp_path / "a.hdr")
    (tmp_path / "b.hdr").write_bytes(b"ENVI\nsamples = 100\nlines = 100\n" * 20)
    with pytest.raises(VolumeError, match=r"b\.hdr: not a NIfTI file"):
        read_volume(tmp_path / "b.hdr")
    with pytest.raises(VolumeError, match=r"a\.img: .*\.hdr"):
        format_of(tmp_path / "a.img")
    like = as_volume((random_array((5, 7, 3)), AFFINE))
    with pytest.raises(VolumeError, match=r"c\.hdr: .*two files"):
        write_volume(tmp_path / "c.hdr", like.array, like)
