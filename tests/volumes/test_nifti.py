"""NIfTI reading and writing: nibabel is the oracle for geometry and values; bad files get one line."""

import gzip
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from volumes.affines import ORIENTATIONS, affine_for, rotation_z

from medseg.errors import GeometryError, VolumeError
from medseg.volumes import Grid, Volume, read_grid, read_label_map, read_volume, replacing, write_volume


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, version: int = 1) -> Path:
    image_class = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    nib.save(image_class(array, np.eye(4) if affine is None else affine), path)
    return path


def random_array(shape: tuple[int, ...], dtype: str = "int16") -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return rng.integers(0, 100, shape).astype(dtype)


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


def test_scale_of_the_input_does_not_reach_the_output(tmp_path: Path) -> None:
    image = nib.Nifti1Image(random_array((3, 4, 5)), np.eye(4))
    image.header.set_slope_inter(3, 7)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"name of the patient"))
    nib.save(image, tmp_path / "in.nii")
    write_volume(tmp_path / "out.nii", random_array((3, 4, 5), "uint8"), read_volume(tmp_path / "in.nii"))
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii").get_fdata(), random_array((3, 4, 5)))
    assert b"patient" not in (tmp_path / "out.nii").read_bytes()


def test_the_grid_decides_where_header_and_grid_disagree(tmp_path: Path) -> None:
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


# ---- bad input -------------------------------------------------------------------------------------------------


def fails(path: Path, match: str, kind: type[Exception] = VolumeError, **kwargs: int) -> None:
    with pytest.raises(kind, match=match) as caught:
        read_volume(path, **kwargs)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_no_file_to_read(tmp_path: Path) -> None:
    fails(tmp_path / "missing.nii.gz", "no such file")
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    fails(tmp_path / "link.nii.gz", "a link to .*gone.nii.gz, which does not exist")
    (tmp_path / "folder.nii.gz").mkdir()
    fails(tmp_path / "folder.nii.gz", "a folder where an image file is expected")
    (tmp_path / "empty.nii.gz").touch()
    fails(tmp_path / "empty.nii.gz", "empty \\(0 bytes\\)")
    os.mkfifo(tmp_path / "pipe.nii")
    fails(tmp_path / "pipe.nii", "not a plain file")


def test_not_an_image(tmp_path: Path) -> None:
    for name, content, match in [
        ("a.txt", b"hello", "not an image name"),
        ("a.nii", b"hello, this is not an image, but it is named like one" * 20, "not a NIfTI file"),
        ("b.nii", b"hi", "truncated inside the header"),
        ("a.nii.gz", b"hello" * 100, "not gzip compressed"),
        ("b.nii.gz", gzip.compress(b"hello" * 100), "not a NIfTI file"),
        ("c.nii.gz", b"\x1f\x8b" + b"\xff" * 50, "damaged"),
        ("c.nii", gzip.compress(b"hello" * 100), "rename it to .nii.gz"),
    ]:
        (tmp_path / name).write_bytes(content)
        fails(tmp_path / name, match)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("part", [0.001, 0.02, 0.3, 0.9, 0.9999])
def test_truncated_anywhere(tmp_path: Path, suffix: str, part: float) -> None:
    rng = np.random.default_rng(0)
    whole = save(tmp_path / f"whole{suffix}", rng.normal(size=(20, 20, 20)).astype("float32")).read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(whole[: max(3, int(len(whole) * part))])
    fails(tmp_path / f"cut{suffix}", "truncated|not a NIfTI|damaged")


def test_header_only_and_broken_checksum(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.nii", random_array((9, 9, 9))).read_bytes()
    (tmp_path / "b.nii").write_bytes(whole[:352])
    fails(tmp_path / "b.nii", "truncated or a false header")
    packed = bytearray(gzip.compress(whole))
    packed[-6] ^= 0xFF
    (tmp_path / "c.nii.gz").write_bytes(packed)
    fails(tmp_path / "c.nii.gz", "CRC|damaged")


def test_three_thousand_flipped_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.nii", random_array((4, 4, 4))).read_bytes()
    rng = np.random.default_rng(1)
    messages = []
    for _ in range(1000):
        damaged = bytearray(whole)
        for position in rng.integers(0, 352, 3):
            damaged[position] = rng.integers(0, 256)
        (tmp_path / "b.nii").write_bytes(damaged)
        try:
            read_volume(tmp_path / "b.nii", allow_non_finite=True)
        except (VolumeError, GeometryError) as error:
            messages.append(str(error))
        except UserWarning:
            pass  # a unit other than mm: warnings from medseg are errors in the tests
    assert len(messages) > 100
    assert {message.split(": ")[0] for message in messages} == {str(tmp_path / "b.nii")}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_claims_of_the_header_cost_no_memory(tmp_path: Path, suffix: str) -> None:
    header = nib.Nifti2Header()
    header.set_data_shape((2**20, 2**20, 2**10))
    header.set_data_dtype(np.float64)
    header["vox_offset"] = 544
    content = header.binaryblock + b"\0" * 1000
    (tmp_path / f"huge{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    fails(tmp_path / f"huge{suffix}", "truncated or a false header.* needs 9007199254740992 bytes")


def test_memory_follows_the_file_and_not_the_header(tmp_path: Path) -> None:
    """Half a megabyte of noise that claims 500 MB, just below what deflate could hold: the process stays small."""
    header = nib.Nifti1Header()
    header.set_data_shape((1000, 1000, 500))
    header.set_data_dtype(np.uint8)
    header["vox_offset"] = 352
    noise = np.random.default_rng(0).integers(0, 256, 500_000).astype(np.uint8).tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + b"\0" * 4 + noise))
    script = (
        "import resource, sys\nfrom medseg.volumes import read_volume\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_volume(sys.argv[1])\nexcept OSError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = [sys.executable, "-c", script, str(tmp_path / "a.nii.gz")]
    message, growth_kb = subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()
    assert "500000000 bytes of voxels are promised and 500000 are there" in message
    assert int(growth_kb) < 30_000


def test_dimensions(tmp_path: Path) -> None:
    fails(save(tmp_path / "4d.nii", random_array((3, 4, 5, 2))), r"shape \(3, 4, 5, 2\) \(4D\) where 3D is expected")
    fails(save(tmp_path / "2d.nii", random_array((3, 4))), r"shape \(3, 4\) where 3D is expected", spatial_dims=3)
    fails(save(tmp_path / "1d.nii", random_array((3,))), "an image needs 2 or 3 axes")
    whole = bytearray(save(tmp_path / "a.nii", random_array((4, 4, 4))).read_bytes())
    for size, name in [(0, "zero.nii"), (-4, "negative.nii")]:
        whole[42:44] = struct.pack("<h", size)
        (tmp_path / name).write_bytes(whole)
        fails(tmp_path / name, rf"shape \({size}, 4, 4\); every size must be at least 1")


def test_types_that_are_no_image(tmp_path: Path) -> None:
    fails(save(tmp_path / "complex.nii", random_array((3, 4, 5), "complex64")), "complex64 voxels")
    rgb = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    fails(save(tmp_path / "rgb.nii", rgb), "RGB voxels")
    whole = bytearray(save(tmp_path / "a.nii", random_array((4, 4, 4))).read_bytes())
    whole[70:72] = struct.pack("<h", 9999)
    (tmp_path / "unknown.nii").write_bytes(whole)
    fails(tmp_path / "unknown.nii", "data code 9999")


def test_affines_that_cannot_be_used(tmp_path: Path) -> None:
    for name, place, value in [("nan", 280, np.nan), ("inf", 296, np.inf), ("zero", 280, 0.0)]:
        whole = bytearray(save(tmp_path / "a.nii", random_array((4, 4, 4))).read_bytes())
        whole[place : place + 4] = struct.pack("<f", value)
        (tmp_path / f"{name}.nii").write_bytes(whole)
        fails(tmp_path / f"{name}.nii", "singular" if name == "zero" else "finite", GeometryError)


def test_voxels_that_are_not_finite(tmp_path: Path) -> None:
    array = random_array((3, 4, 5), "float32")
    array[0, 1, 2] = np.nan
    array[2, 2, 2] = np.inf
    path = save(tmp_path / "a.nii", array)
    fails(path, "2 of 60 voxels are NaN or infinite")
    np.testing.assert_array_equal(read_volume(path, allow_non_finite=True).array, array)
    fails(save(tmp_path / "all.nii", np.full((3, 4, 5), np.nan)), "60 of 60")
    huge = np.full((2, 2, 2), 1e308)  # finite, although its sum is not
    assert read_volume(save(tmp_path / "huge.nii", huge)).array.max() == 1e308


def test_units_other_than_mm_are_told(tmp_path: Path) -> None:
    image = nib.Nifti1Image(random_array((3, 4, 5)), np.eye(4))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    with pytest.warns(UserWarning, match="declares micron"):
        volume = read_volume(tmp_path / "a.nii")
    write_volume(tmp_path / "b.nii", volume.array, volume)
    assert nib.load(tmp_path / "b.nii").header.get_xyzt_units()[0] == "micron"


def test_nothing_half_written(tmp_path: Path) -> None:
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
        write_volume(tmp_path / "d.jpeg", like.array, like)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "c.nii", "file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("old")

    def write_to_a_full_disk() -> None:
        with replacing(tmp_path / "old.txt") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"x" * 100000)

    with pytest.raises(VolumeError, match="No space left"):
        write_to_a_full_disk()
    assert (tmp_path / "old.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
