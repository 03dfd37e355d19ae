"""Damaged files of every format give one line that names the file; libraries print nothing, and memory stays small."""

import gzip
import re
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg.errors import GeometryError, VolumeError
from medseg.volumes import read_volume

ARRAY = np.random.default_rng(0).normal(size=(9, 10, 11)).astype(np.float32)


def written(folder: Path, name: str, array: np.ndarray = ARRAY, packed: bool = False) -> bytes:
    path = folder / f"whole_{name}"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=packed)
    content = path.read_bytes()
    path.unlink()
    return content


def nifti(**fields: object) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_shape(ARRAY.shape)
    header.set_data_dtype(np.float32)
    header.set_sform(np.eye(4), code=1)
    header["vox_offset"] = 352
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + ARRAY.tobytes(order="F")


def fails(path: Path, content: bytes, capfd: pytest.CaptureFixture) -> str:
    """Return the error line, without the path; check that nothing is printed."""
    path.write_bytes(content)
    with pytest.raises((VolumeError, GeometryError)) as caught:
        read_volume(path)
    line = str(caught.value)
    assert line.startswith(str(path))
    assert "\n" not in line
    assert not re.search(r"\w\(0x", line)  # no object's address
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    return line.replace(str(path), "")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nii", "a.nii.gz", "a.png"])
def test_a_file_cut_anywhere_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture, name: str, packed: bool) -> None:
    array = (ARRAY[0] * 50).astype(np.uint8) if name.endswith("png") else ARRAY
    content = written(tmp_path, name, array, packed)
    lengths = {0, 1, 2, 5, 40, 130, 200, 347, 352, 360, len(content) // 2, len(content) - 8, len(content) - 1}
    for length in sorted(length for length in lengths if length < len(content)):
        line = fails(tmp_path / name, content[:length], capfd)
        assert re.search("empty|truncated|damaged|not a|not one|gzip", line), (length, line)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nii.gz", "a.png"])
def test_a_flipped_byte_in_compressed_voxels_is_detected(
    tmp_path: Path, capfd: pytest.CaptureFixture, name: str
) -> None:
    array = (ARRAY[0] * 50).astype(np.uint8) if name.endswith("png") else ARRAY
    content = written(tmp_path, name, array, packed=True)
    for position in (len(content) // 2, len(content) * 3 // 4, len(content) - (30 if name.endswith("png") else 20)):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path = tmp_path / name
        assert re.search("truncated|damaged", fails(path, bytes(damaged), capfd))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("depth", [1, 9], ids=["image", "stack"])
def test_a_tiff_file_cut_anywhere_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture, depth: int, packed: bool
) -> None:
    """libtiff alone would print a line per missing tag and read the rest."""
    content = written(tmp_path, "a.tif", ARRAY[:depth] if depth > 1 else ARRAY[0], packed)
    for length in sorted({0, 3, 6, 9, len(content) // 3, len(content) // 2, len(content) - 1}):
        assert re.search("empty|truncated|damaged|not one", fails(tmp_path / "a.tif", content[:length], capfd)), length


@pytest.mark.parametrize("kind", ["<II*", ">MM*", "<II+", ">MM+"])
def test_tiff_and_big_tiff_in_both_byte_orders(tmp_path: Path, capfd: pytest.CaptureFixture, kind: str) -> None:
    """An image of 3×2 bytes, written by hand."""
    order, is_big = kind[0], kind[-1] == "+"
    number = "Q" if is_big else "I"
    tags = {256: (3, 3), 257: (3, 2), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 0), 277: (3, 1), 278: (3, 2)}
    tags[279] = (4, 6)
    head = kind[1:3].encode() + struct.pack(
        order + ("HHHQ" if is_big else "HI"), *((43, 8, 0, 16) if is_big else (42, 8))
    )
    begin = len(head) + struct.calcsize(order + ("Q" if is_big else "H")) + len(tags) * (20 if is_big else 12)
    tags[273] = (4, begin + struct.calcsize(order + number))
    body = struct.pack(order + ("Q" if is_big else "H"), len(tags))
    for tag, (code, value) in tags.items():
        packed = struct.pack(order + ("H" if code == 3 else "I"), value).ljust(8 if is_big else 4, b"\0")
        body += struct.pack(order + "HH" + number, tag, code, 1) + packed
    content = head + body + struct.pack(order + number, 0) + bytes(range(6))
    (tmp_path / "a.tif").write_bytes(content)
    if kind == ">MM+":  # Pillow cannot read these
        assert "big-endian BigTIFF" in fails(tmp_path / "a.tif", content, capfd)
        return
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").array.T, np.arange(6).reshape(2, 3))
    assert "truncated" in fails(tmp_path / "b.tif", content[:-1], capfd)


def test_a_metaimage_header_without_sizes_or_with_fewer_voxels_than_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    content = written(tmp_path, "a.mha", packed=True)
    moved = re.sub(rb"(DimSize = .*\n)((?s:.*?)ElementDataFile = .*\n)", rb"\2\1", content)
    assert "DimSize" in fails(tmp_path / "a.mha", moved, capfd)
    fewer = re.sub(rb"DimSize = .*", b"DimSize = 11 10 8", content)
    assert "3960 bytes of voxels and its header promises 3520" in fails(tmp_path / "a.mha", fewer, capfd)


@pytest.mark.parametrize("sizes", ["100000 100000 100000", "0 10 9", "-3 10 9", "11 10", "99999999999999999999 1 1"])
@pytest.mark.parametrize("packed", [False, True])
def test_false_sizes_in_nrrd_and_metaimage_headers(
    tmp_path: Path, capfd: pytest.CaptureFixture, sizes: str, packed: bool
) -> None:
    for name, field in (("a.nrrd", b"sizes: "), ("a.mha", b"DimSize = ")):
        content = written(tmp_path, name, packed=packed)
        fails(tmp_path / name, re.sub(field + b".*", field + sizes.encode(), content), capfd)


@pytest.mark.parametrize("dim", [[3, 30000, 30000, 30000], [3, 9, 0, 11], [3, 9, -10, 11]])
@pytest.mark.parametrize("packed", [False, True])
def test_false_sizes_in_nifti_headers(
    tmp_path: Path, capfd: pytest.CaptureFixture, dim: list[int], packed: bool
) -> None:
    content = nifti(dim=[*dim, 1, 1, 1, 1])
    name, content = ("a.nii.gz", gzip.compress(content)) if packed else ("a.nii", content)
    fails(tmp_path / name, content, capfd)


@pytest.mark.parametrize("shape", [(60000, 60000), (0, 5), (2**31 - 1, 2**31 - 1)])
def test_false_sizes_in_png_headers(tmp_path: Path, capfd: pytest.CaptureFixture, shape: tuple[int, int]) -> None:
    content = written(tmp_path, "a.png", (ARRAY[0] * 50).astype(np.uint8))
    chunk = b"IHDR" + struct.pack(">II", *shape) + content[24:29]
    content = content[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]
    assert "truncated" in fails(tmp_path / "a.png", content, capfd)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"datatype": 9999}, "data code 9999 not recognized"),
        ({"vox_offset": 0}, r"voxels cannot begin at byte 0 \(vox_offset\), in the header"),
        ({"vox_offset": -100}, "vox offset -100 too low"),
        ({"vox_offset": np.nan}, "damaged"),
        ({"vox_offset": 1e9}, "truncated"),
        ({"sform_code": 0, "qform_code": 1, "pixdim": [1, 0, 1, 1, 0, 0, 0, 0]}, r"voxels of \[0.0, 1.0, 1.0\] mm"),
        ({"sform_code": 0, "pixdim": [1, 1, np.nan, 1, 0, 0, 0, 0]}, r"voxels of \[1.0, nan, 1.0\] mm"),
        ({"srow_x": [np.inf, 0, 0, 0]}, "the affine must be finite"),
        ({"srow_x": [0, 1, 0, 0]}, "the affine is singular"),
    ],
)
def test_bad_fields_of_nifti_headers(
    tmp_path: Path, capfd: pytest.CaptureFixture, fields: dict[str, object], rule: str
) -> None:
    assert re.search(rule, fails(tmp_path / "a.nii", nifti(**fields), capfd))


def test_a_metaimage_with_an_unknown_type_or_a_missing_voxel_file(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    content = written(tmp_path, "a.mha")
    unknown = content.replace(b"MET_FLOAT", b"MET_FLOAD")
    assert "ElementType MET_FLOAD" in fails(tmp_path / "a.mha", unknown, capfd)
    absent = content.replace(b"ElementDataFile = LOCAL", b"ElementDataFile = LOCBL")
    assert "LOCBL" in fails(tmp_path / "a.mha", absent, capfd)
