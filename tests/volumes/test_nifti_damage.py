"""Bad NIfTI files give one line that names the file and the value found, and need little memory."""

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from volumes.nifti_files import random_array, save

from medseg.errors import GeometryError, VolumeError
from medseg.volumes import read_volume


def fails(path: Path, match: str, kind: type[Exception] = VolumeError, **kwargs: int) -> None:
    with pytest.raises(kind, match=match) as caught:
        read_volume(path, **kwargs)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    fails(tmp_path / "missing.nii.gz", "no such file")
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    fails(tmp_path / "link.nii.gz", "a link to .*gone.nii.gz, which does not exist")
    (tmp_path / "folder.nii.gz").mkdir()
    fails(tmp_path / "folder.nii.gz", "a folder where an image file is expected")
    (tmp_path / "empty.nii.gz").touch()
    fails(tmp_path / "empty.nii.gz", "empty \\(0 bytes\\)")
    os.mkfifo(tmp_path / "pipe.nii")
    fails(tmp_path / "pipe.nii", "not a plain file")


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, content, match in [
        ("a.txt", b"hello", "not an image name"),
        ("a.nii", b"hello, this is not an image, but it is named like one" * 20, "not a NIfTI file"),
        ("b.nii", b"hi", "truncated inside the header"),
        ("a.nii.gz", b"hello" * 100, "not gzip compressed"),
        ("b.nii.gz", gzip.compress(b"hello" * 100), "not a NIfTI file"),
        ("c.nii.gz", b"\x1f\x8b" + b"\xff" * 50, "damaged"),
        ("c.nii", gzip.compress(b"hello" * 100), r"rename it to c\.nii\.gz"),
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


def test_flipped_bytes_never_raise_another_error(tmp_path: Path) -> None:
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
def test_a_false_header_costs_no_memory(tmp_path: Path, suffix: str) -> None:
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


def test_complex_and_rgb_voxels_are_refused(tmp_path: Path) -> None:
    fails(save(tmp_path / "complex.nii", random_array((3, 4, 5), "complex64")), "complex64 voxels")
    rgb = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    fails(save(tmp_path / "rgb.nii", rgb), "RGB voxels")
    whole = bytearray(save(tmp_path / "a.nii", random_array((4, 4, 4))).read_bytes())
    whole[70:72] = struct.pack("<h", 9999)
    (tmp_path / "unknown.nii").write_bytes(whole)
    fails(tmp_path / "unknown.nii", "data code 9999")


def test_bad_affines_are_refused(tmp_path: Path) -> None:
    for name, place, value in [("nan", 280, np.nan), ("inf", 296, np.inf), ("zero", 280, 0.0)]:
        whole = bytearray(save(tmp_path / "a.nii", random_array((4, 4, 4))).read_bytes())
        whole[place : place + 4] = struct.pack("<f", value)
        (tmp_path / f"{name}.nii").write_bytes(whole)
        fails(tmp_path / f"{name}.nii", "singular" if name == "zero" else "finite", GeometryError)


def test_voxels_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    array = random_array((3, 4, 5), "float32")
    array[0, 1, 2] = np.nan
    array[2, 2, 2] = np.inf
    path = save(tmp_path / "a.nii", array)
    fails(path, "2 of 60 voxels are NaN or infinite")
    np.testing.assert_array_equal(read_volume(path, allow_non_finite=True).array, array)
    fails(save(tmp_path / "all.nii", np.full((3, 4, 5), np.nan)), "60 of 60")
    huge = np.full((2, 2, 2), 1e308)  # finite, although its sum is not
    assert read_volume(save(tmp_path / "huge.nii", huge)).array.max() == 1e308
