"""NIfTI reading and writing: nibabel is the oracle for geometry and values."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from volumes.affines import ORIENTATIONS, affine_for, rotation_z
from volumes.nifti_files import random_array, save

from medseg.errors import VolumeError
from medseg.volumes import Grid, Volume, read_grid, read_label_map, read_volume, write_volume


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_reads_what_nibabel_reads(tmp_path: Path, dtype: str, name: str) -> None:
    affine = rotation_z(20) @ affine_for("PIR")
    path = save(tmp_path / name, random_array((5, 7, 3), dtype), affine)
    volume, image = read_volume(path), nib.load(path)
    assert volume.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.array, np.asarray(image.dataobj))
    np.testing.assert_array_equal(volume.grid.affine, image.affine)
    assert read_grid(path) == volume.grid
    volume.array[0, 0, 0] = 1  # callers may work in place


def test_scaled_and_big_endian(tmp_path: Path) -> None:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    image = nib.Nifti1Image(random_array((4, 5, 6)), np.eye(4), header)
    image.header.set_slope_inter(0.5, -1024)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.array.dtype == np.float32
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array, nib.load(tmp_path / "a.nii").get_fdata())


def test_sform_wins_over_qform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(random_array((4, 5, 6)), None)
    image.set_qform(affine_for("RAS"), code=1)
    image.set_sform(affine_for("LPI"), code=2)
    nib.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").grid.orientation == "LPI"


@pytest.mark.parametrize("code", ORIENTATIONS)
@pytest.mark.parametrize("degrees", [0.0, 17.0])
def test_round_trip_keeps_geometry_in_all_48_orientations(tmp_path: Path, code: str, degrees: float) -> None:
    shape = (5, 1, 3) if code.startswith("P") else (3, 4, 5)  # one voxel thick, and odd
    source = save(tmp_path / "in.nii.gz", random_array(shape), rotation_z(degrees) @ affine_for(code, (0.7, 1.3, 2.9)))
    like = read_volume(source)
    write_volume(tmp_path / "out.nii.gz", random_array(shape, "uint8"), like)
    before, after = nib.load(source), nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(np.asarray(after.dataobj), random_array(shape))
    assert after.get_data_dtype() == np.uint8


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (1, 1), (3, 4), (1, 4)])
def test_codes_units_and_version_survive(tmp_path: Path, version: int, codes: tuple[int, int]) -> None:
    image = (nib.Nifti1Image if version == 1 else nib.Nifti2Image)(random_array((3, 4, 5)), None)
    image.set_qform(rotation_z(30) @ affine_for("LAS"), code=codes[0])
    image.set_sform(affine_for("RPI") if codes == (3, 4) else rotation_z(30) @ affine_for("LAS"), code=codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][1:4] = (1, 2, 3)
    nib.save(image, tmp_path / "in.nii")
    write_volume(tmp_path / "out.nii", random_array((3, 4, 5)), read_volume(tmp_path / "in.nii"))
    before, after = nib.load(tmp_path / "in.nii").header, nib.load(tmp_path / "out.nii").header
    fields = ["sizeof_hdr", "dim", "pixdim", "qform_code", "sform_code", "xyzt_units", "magic"]
    fields += [
        "quatern_b",
        "quatern_c",
        "quatern_d",
        "qoffset_x",
        "qoffset_y",
        "qoffset_z",
        "srow_x",
        "srow_y",
        "srow_z",
    ]
    for field in fields:
        np.testing.assert_array_equal(after[field], before[field], err_msg=field)


def test_the_output_has_neither_scale_nor_extensions_of_the_input(tmp_path: Path) -> None:
    image = nib.Nifti1Image(random_array((3, 4, 5)), np.eye(4))
    image.header.set_slope_inter(3, 7)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"name of the patient"))
    nib.save(image, tmp_path / "in.nii")
    write_volume(tmp_path / "out.nii", random_array((3, 4, 5), "uint8"), read_volume(tmp_path / "in.nii"))
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii").get_fdata(), random_array((3, 4, 5)))
    assert b"patient" not in (tmp_path / "out.nii").read_bytes()


def test_the_grid_wins_if_header_and_grid_differ(tmp_path: Path) -> None:
    """A volume resampled in memory still carries the header of its file."""
    like = read_volume(save(tmp_path / "in.nii", random_array((3, 4, 5)), affine_for("RAS")))
    moved = replace(like, grid=Grid((3, 4, 5), rotation_z(8) @ affine_for("LPI")))
    header = nib.load(write_volume(tmp_path / "out.nii", like.array, moved)).header
    np.testing.assert_allclose(header.get_sform(), moved.grid.affine, atol=1e-6)
    np.testing.assert_allclose(header.get_qform(), moved.grid.affine, atol=1e-4)
    assert int(header["sform_code"]) == 2  # the file's own


def test_more_voxels_than_nifti_1_can_count(tmp_path: Path) -> None:
    array = np.zeros((2**15, 1, 1), np.uint8)
    path = write_volume(tmp_path / "a.nii.gz", array, Volume(array, Grid(array.shape, np.eye(4))))
    assert isinstance(nib.load(path), nib.Nifti2Image)
    assert read_volume(path).array.shape == array.shape


def test_single_trailing_axis_is_3d_and_comes_back(tmp_path: Path) -> None:
    save(tmp_path / "in.nii", random_array((3, 4, 5, 1)))
    volume = read_volume(tmp_path / "in.nii", spatial_dims=3)
    assert volume.array.shape == volume.grid.shape == (3, 4, 5)
    write_volume(tmp_path / "out.nii", volume.array, volume)
    assert nib.load(tmp_path / "out.nii").shape == (3, 4, 5, 1)


def test_label_maps(tmp_path: Path) -> None:
    labels = random_array((3, 4, 5), "float32")
    labels[0, 0, 0] = 300
    result = read_label_map(save(tmp_path / "a.nii", labels))
    assert result.array.dtype == np.int16
    np.testing.assert_array_equal(result.array, labels)
    labels[1, 1, 1] = 1.5
    with pytest.raises(VolumeError, match=r"whole numbers, found 1\.5 \(1 such"):
        read_label_map(save(tmp_path / "b.nii", labels))


@pytest.mark.parametrize(("given", "stored"), [("bool", "uint8"), ("int64", "uint8"), ("float16", "float32")])
def test_types_on_disk(tmp_path: Path, given: str, stored: str) -> None:
    like = read_volume(save(tmp_path / "a.nii", random_array((3, 4, 5))))
    array = random_array((3, 4, 5)).astype(given)
    path = write_volume(tmp_path / "b.nii", array, like)
    assert nib.load(path).get_data_dtype() == np.dtype(stored)
    np.testing.assert_array_equal(read_volume(path).array, array.astype(stored))


def test_a_unit_other_than_mm_is_a_warning(tmp_path: Path) -> None:
    image = nib.Nifti1Image(random_array((3, 4, 5)), np.eye(4))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    with pytest.warns(UserWarning, match="declares micron"):
        volume = read_volume(tmp_path / "a.nii")
    write_volume(tmp_path / "b.nii", volume.array, volume)
    assert nib.load(tmp_path / "b.nii").header.get_xyzt_units()[0] == "micron"


def with_scale(path: Path, slope: float, intercept: float) -> Path:
    """Write the voxels 0…59 and a scale in the header by hand."""
    header = nib.Nifti1Header()
    header.set_data_shape((3, 4, 5))
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), code=1)
    header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, slope, intercept
    path.write_bytes(header.binaryblock + bytes(4) + np.arange(60, dtype=np.int16).tobytes())
    return path


@pytest.mark.parametrize(("slope", "intercept"), [(1, np.nan), (2, np.inf), (0.5, -np.inf), (np.inf, 0), (-np.inf, 3)])
def test_a_scale_that_is_not_finite_is_named(tmp_path: Path, slope: float, intercept: float) -> None:
    path = with_scale(tmp_path / "scan.nii", slope, intercept)
    with pytest.raises(VolumeError, match=r"scan\.nii.*scl_slope.*scl_inter"):
        read_volume(path)


@pytest.mark.parametrize(("slope", "intercept"), [(0, np.nan), (np.nan, np.nan), (np.nan, 7), (0, 5), (1, 0)])
def test_a_slope_of_zero_or_nan_stands_for_no_scale_as_in_nibabel(
    tmp_path: Path, slope: float, intercept: float
) -> None:
    path = with_scale(tmp_path / "scan.nii", slope, intercept)
    np.testing.assert_array_equal(read_volume(path).array, nib.load(path).get_fdata())
    np.testing.assert_array_equal(read_volume(path).array.ravel(order="F"), np.arange(60))


def test_contrast_survives_a_large_intercept(tmp_path: Path) -> None:
    path = with_scale(tmp_path / "scan.nii", 1, 4e9)
    np.testing.assert_array_equal(read_volume(path).array, nib.load(path).get_fdata())
    assert len(np.unique(read_volume(path).array)) == 60


@pytest.mark.parametrize("values", [[0, 1], [0, 1, 2], [0, 1, 4], [0, 1, 2, 3, 100], [-1, 0, 1], [0, 3, 200]])
def test_label_maps_that_nibabel_rescaled_are_rounded(tmp_path: Path, values: list[int]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(values, (7, 8, 9))
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int8 if min(values) < 0 else np.uint8)
    for scale in (1.0, 1 + 1e-9):  # nibabel scales floating-point numbers that do not fill the type
        nib.save(nib.Nifti1Image(labels * scale, np.eye(4), header), tmp_path / "label.nii.gz")
        np.testing.assert_array_equal(read_label_map(tmp_path / "label.nii.gz").array, labels)


def test_a_slope_that_hides_the_label_values_is_named(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    probabilities = np.random.default_rng(0).random((5, 6, 7))
    far_apart = np.random.default_rng(0).choice([0, 3, 500, 1000], (5, 6, 7)).astype(float)
    for values in (probabilities, far_apart):
        nib.save(nib.Nifti1Image(values, np.eye(4), header), tmp_path / "label.nii")
        slope = float(nib.load(tmp_path / "label.nii").dataobj.slope)
        with pytest.raises(VolumeError, match=f"scl_slope {slope}"):
            read_label_map(tmp_path / "label.nii")


def test_bytes_behind_the_end_of_a_gzip_stream_are_left_out(tmp_path: Path) -> None:
    array = random_array((20, 21, 22), "int16")
    path = save(tmp_path / "a.nii.gz", array, np.eye(4))
    whole = path.read_bytes()
    for tail in (b"\0" * 100, b"appended by an archive", b"x", bytes(range(256)) * 1000):
        path.write_bytes(whole + tail)
        np.testing.assert_array_equal(read_volume(path).array, array)
        assert read_grid(path).shape == array.shape
    damaged = bytearray(whole + b"appended")
    damaged[len(whole) - 6] ^= 1  # in the checksum
    path.write_bytes(damaged)
    with pytest.raises(VolumeError, match=r"a\.nii\.gz"):
        read_volume(path)
