"""MGH and MGZ: nibabel is the oracle for geometry and values; bad files get one line and little memory."""

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from volumes.affines import ORIENTATIONS, affine_for, rotation_z
from volumes.nifti_files import random_array, save

from medseg.errors import GeometryError, VolumeError
from medseg.volumes import as_volume, read_grid, read_label_map, read_volume, write_volume

SHARED = Path(os.environ.get("MEDSEG_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
BRAIN = SHARED / "brain_t1" / "t1_brain.mgz"


def save_mgh(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.MGHImage(array, affine), path)
    return path


def fails(path: Path, match: str, kind: type[Exception] = VolumeError) -> None:
    for read in (read_volume, read_grid) if kind is GeometryError else (read_volume,):
        with pytest.raises(kind, match=match) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
@pytest.mark.parametrize("name", ["a.mgz", "a.mgh", "A.MGZ"])
def test_reads_what_nibabel_reads(tmp_path: Path, dtype: str, name: str) -> None:
    path = save_mgh(tmp_path / name, random_array((5, 7, 3), dtype), rotation_z(20) @ affine_for("PIR"))
    volume, image = read_volume(path), nib.load(path)
    assert volume.array.dtype == np.dtype(dtype)
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array, np.asarray(image.dataobj))
    np.testing.assert_array_equal(volume.grid.affine, image.affine)
    assert read_grid(path) == volume.grid


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_output_has_the_exact_affine_of_the_input_in_all_48_orientations(tmp_path: Path, code: str) -> None:
    affine = rotation_z(17) @ affine_for(code, (0.7, 1.3, 2.9))
    source = save_mgh(tmp_path / "in.mgz", random_array((3, 4, 5)), affine)
    labels = random_array((3, 4, 5), "uint8")
    for name, scan in (("file.mgz", read_volume(source)), ("memory.mgh", as_volume(nib.load(source)))):
        again = nib.load(write_volume(tmp_path / name, labels, scan))
        np.testing.assert_array_equal(again.affine, nib.load(source).affine)
        np.testing.assert_array_equal(np.asarray(again.dataobj), labels)
        assert again.get_data_dtype() == np.dtype(">u1")


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_nifti_and_mgh_convert_into_each_other(tmp_path: Path, code: str) -> None:
    array = random_array((3, 4, 5))
    nifti = read_volume(save(tmp_path / "a.nii.gz", array, rotation_z(33) @ affine_for(code, (0.7, 1.3, 2.9))))
    mgh = read_volume(write_volume(tmp_path / "b.mgz", array, nifti))
    assert mgh.grid.displacement_mm(nifti.grid) < 1e-5
    back = read_volume(write_volume(tmp_path / "c.nii.gz", mgh.array, mgh))
    assert back.grid.displacement_mm(mgh.grid) < 1e-5
    np.testing.assert_array_equal(back.array, array)


@pytest.mark.parametrize(
    ("given", "stored"),
    [("int8", "int16"), ("uint16", "int32"), ("uint32", "int32"), ("float64", "float32"), ("int64", "uint8")],
)
def test_types_that_the_format_lacks_are_stored_without_loss(tmp_path: Path, given: str, stored: str) -> None:
    array = random_array((3, 4, 5)).astype(given)
    like = as_volume((array, np.eye(4)))
    path = write_volume(tmp_path / "a.mgz", array, like)
    assert nib.load(path).get_data_dtype().newbyteorder("=") == np.dtype(stored)
    np.testing.assert_array_equal(read_label_map(path).array, array)


def test_what_the_format_cannot_store_is_refused(tmp_path: Path) -> None:
    like = as_volume((np.zeros((3, 4, 5)), np.eye(4)))
    with pytest.raises(VolumeError, match=r"a\.mgz: .*uint32 values from 4e\+09"):
        write_volume(tmp_path / "a.mgz", np.full((3, 4, 5), 4_000_000_000, np.uint32), like)
    with pytest.raises(VolumeError, match=r"a\.mgz: .*float64"):
        write_volume(tmp_path / "a.mgz", np.full((3, 4, 5), 0.1), like)
    flat = as_volume((np.zeros((3, 4), np.uint8), np.eye(4)))
    with pytest.raises(VolumeError, match=r"a\.mgz: .*3D images, found 2D"):
        write_volume(tmp_path / "a.mgz", flat.array, flat)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".mgh", ".mgz"])
@pytest.mark.parametrize("part", [0.001, 0.02, 0.3, 0.9])
def test_truncated_anywhere(tmp_path: Path, suffix: str, part: float) -> None:
    array = np.random.default_rng(0).normal(size=(20, 20, 20)).astype("float32")
    whole = save_mgh(tmp_path / f"whole{suffix}", array, np.eye(4)).read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(whole[: max(3, int(len(whole) * part))])
    fails(tmp_path / f"cut{suffix}", "truncated|damaged")


def test_other_files_and_false_headers(tmp_path: Path) -> None:
    whole = save_mgh(tmp_path / "a.mgh", random_array((3, 4, 5)), np.eye(4)).read_bytes()
    for name, content, match in [
        ("text.mgh", b"this is no image" * 50, "not an MGH file"),
        ("text.mgz", b"this is no image" * 50, "not gzip compressed"),
        ("packed.mgh", gzip.compress(whole), "gzip compressed but not named so"),
        ("type.mgh", whole[:20] + struct.pack(">i", 99) + whole[24:], "unknown voxel type 99"),
        ("zero.mgh", whole[:4] + struct.pack(">i", 0) + whole[8:], r"shape \(0, 4, 5\)"),
        ("frames.mgh", whole[:16] + struct.pack(">i", 2) + whole[20:], r"shape \(3, 4, 5, 2\) \(4D\)"),
        ("huge.mgh", whole[:4] + struct.pack(">iii", 2**30, 2**30, 2**30) + whole[16:], "truncated or a false header"),
    ]:
        (tmp_path / name).write_bytes(content)
        fails(tmp_path / name, match)
    for name, delta in (("singular.mgh", 0.0), ("nan.mgh", np.nan)):
        (tmp_path / name).write_bytes(whole[:30] + struct.pack(">f", delta) + whole[34:])
        fails(tmp_path / name, "affine", GeometryError)


def test_memory_follows_the_file_and_not_the_header(tmp_path: Path) -> None:
    """Half a megabyte of noise that claims 500 MB, just below what deflate could hold: the process stays small."""
    header = nib.freesurfer.mghformat.MGHHeader()
    header.set_data_shape((1000, 1000, 500))
    header.set_data_dtype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, 500_000).astype(np.uint8).tobytes()
    (tmp_path / "a.mgz").write_bytes(gzip.compress(header.binaryblock[:284] + noise))
    script = (
        "import resource, sys\nfrom medseg.volumes import read_volume\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_volume(sys.argv[1])\nexcept OSError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = [sys.executable, "-c", script, str(tmp_path / "a.mgz")]
    message, growth_kb = subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()
    assert "500000000" in message
    assert int(growth_kb) < 30_000


def test_flipped_bytes_never_raise_another_error(tmp_path: Path) -> None:
    whole = save_mgh(tmp_path / "a.mgh", random_array((4, 4, 4)), np.eye(4)).read_bytes()
    rng = np.random.default_rng(1)
    messages = []
    for _ in range(300):
        damaged = bytearray(whole)
        for position in rng.integers(0, 90, 3):
            damaged[position] = rng.integers(0, 256)
        (tmp_path / "b.mgh").write_bytes(damaged)
        try:
            read_volume(tmp_path / "b.mgh", allow_non_finite=True)
        except (VolumeError, GeometryError) as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert {message.split(": ")[0] for message in messages} == {str(tmp_path / "b.mgh")}


@pytest.mark.data
@pytest.mark.skipif(not BRAIN.is_file(), reason=f"no shared data at {BRAIN}")
def test_a_real_file_of_freesurfer_makes_the_round_trip(tmp_path: Path) -> None:
    volume, image = read_volume(BRAIN), nib.load(BRAIN)
    assert volume.grid.orientation == "LIA"
    np.testing.assert_array_equal(volume.array, np.asarray(image.dataobj))
    np.testing.assert_array_equal(volume.grid.affine, image.affine)
    mask = (volume.array > 60).astype(np.uint8)
    again = nib.load(write_volume(tmp_path / "mask.mgz", mask, volume))
    np.testing.assert_array_equal(again.affine, image.affine)
    np.testing.assert_array_equal(np.asarray(again.dataobj), mask)
