"""NRRD, MetaImage, PNG and TIFF: SimpleITK and hand-written headers are the oracles; bad files get one line."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from volumes.affines import ORIENTATIONS, affine_for, rotation_z

from medseg.errors import GeometryError, VolumeError
from medseg.volumes import Grid, Volume, read_grid, read_label_map, read_volume, write_volume


def volume(shape: tuple[int, ...] = (3, 4, 5), dtype: str = "int16", affine: np.ndarray | None = None) -> Volume:
    array = np.random.default_rng(sum(shape)).integers(0, 200, shape).astype(dtype)
    return Volume(array, Grid(shape, np.eye(4) if affine is None else affine))


def fails(path: Path, match: str, kind: type[Exception] = VolumeError) -> None:
    with pytest.raises(kind, match=match) as caught:
        read_volume(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("code", ORIENTATIONS)
def test_round_trip_in_all_48_orientations(tmp_path: Path, suffix: str, code: str) -> None:
    shape = (5, 1, 3) if code.startswith("P") else (3, 4, 5)
    like = volume(shape, affine=rotation_z(17) @ affine_for(code, (0.7, 1.3, 2.9)))
    again = read_volume(write_volume(tmp_path / f"a{suffix}", like.array, like))
    np.testing.assert_array_equal(again.array, like.array)
    assert again.array.dtype == like.array.dtype
    assert again.grid.displacement_mm(like.grid) < 1e-5
    assert again.grid.orientation == like.grid.orientation


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_places_voxels_where_simpleitk_does(tmp_path: Path, suffix: str) -> None:
    """ITK's LPS+ point of every voxel is our RAS+ point with the first two signs turned."""
    like = volume(affine=rotation_z(33) @ affine_for("PIR", (0.7, 1.3, 2.9)))
    path = write_volume(tmp_path / f"a{suffix}", like.array, like)
    image, ours = sitk.ReadImage(str(path)), read_volume(path)
    for index in [(0, 0, 0), (2, 3, 4), (1, 0, 3)]:
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(ours.grid.affine @ [*index, 1], [-x, -y, z, 1], atol=1e-5)
        assert image.GetPixel(index) == ours.array[index]


def test_a_header_written_by_hand(tmp_path: Path) -> None:
    voxels = np.arange(24, dtype="<i2")
    text = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 2 3 4\nendian: little\n"
        "encoding: raw\nspace directions: (0,2,0) (3,0,0) (0,0,4)\nspace origin: (10,20,30)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(text.encode() + voxels.tobytes())
    result = read_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(result.array, voxels.reshape((2, 3, 4), order="F"))
    expected = [[0, 3, 0, 10], [2, 0, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(result.grid.affine, expected, atol=1e-12)
    assert read_grid(tmp_path / "a.nrrd") == result.grid


@pytest.mark.parametrize(
    ("suffix", "shape", "dtype"),
    [
        (".png", (7, 5), "uint8"),
        (".png", (7, 5), "uint16"),
        (".tif", (7, 5), "uint8"),
        (".tiff", (7, 5), "float32"),
        (".tif", (7, 5, 3), "uint16"),
    ],
)
def test_pictures_make_the_round_trip(tmp_path: Path, suffix: str, shape: tuple[int, ...], dtype: str) -> None:
    like = volume(shape, dtype)
    again = read_volume(write_volume(tmp_path / f"a{suffix}", like.array, like), spatial_dims=len(shape))
    np.testing.assert_array_equal(again.array, like.array)
    assert again.array.dtype == dtype
    assert again.grid == like.grid


def test_png_axes_agree_with_pillow_and_monai(tmp_path: Path) -> None:
    from PIL import Image

    rows = np.arange(35, dtype=np.uint8).reshape(5, 7)  # 5 rows, 7 columns
    Image.fromarray(rows).save(tmp_path / "a.png")
    ours = read_volume(tmp_path / "a.png").array
    np.testing.assert_array_equal(ours, rows.T)  # axis 0 runs along the width, as i does
    from monai.transforms import LoadImage

    np.testing.assert_array_equal(LoadImage(image_only=True)(tmp_path / "a.png").numpy(), ours)


def test_pictures_cannot_store_geometry(tmp_path: Path) -> None:
    like = volume((7, 5), "uint8", np.diag([0.5, 0.5, 1, 1]))
    for name in ("a.png", "a.tif"):
        with pytest.raises(GeometryError, match="cannot keep the geometry"):
            write_volume(tmp_path / name, like.array, like)
    with pytest.raises(VolumeError, match="PNG holds two-dimensional uint8 or uint16, found 3D"):
        write_volume(tmp_path / "a.png", volume(dtype="uint8").array, volume(dtype="uint8"))
    with pytest.raises(VolumeError, match="would be two files"):
        write_volume(tmp_path / "a.mhd", volume().array, volume())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".png", ".tif"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.95])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, part: float) -> None:
    array = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)
    whole = write_volume(tmp_path / f"whole{suffix}", array, volume((40, 50), "uint8")).read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(whole[: int(len(whole) * part)])
    fails(tmp_path / f"cut{suffix}", "truncated")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".png", ".tif", ".dcm"])
def test_other_files_are_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"this is no image at all " * 50)
    fails(tmp_path / f"a{suffix}", "(nrrd|mha|png|tiff|DICOM) file, but not one")
    (tmp_path / f"b{suffix}").touch()
    fails(tmp_path / f"b{suffix}", "is empty")


def test_a_false_header_costs_no_memory(tmp_path: Path) -> None:
    sizes = "100000 100000 1000"
    nrrd = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nendian: little\nencoding: %s\n\n"
    mha = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = %s\n"
        "CompressedDataSize = 1000\n"
        f"DimSize = {sizes}\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    for name, text in [
        ("raw.nrrd", nrrd % "raw"),
        ("gz.nrrd", nrrd % "gzip"),
        ("raw.mha", mha % "False"),
        ("gz.mha", mha % "True"),
    ]:
        (tmp_path / name).write_bytes(text.encode() + b"\0" * 1000)
        fails(tmp_path / name, "truncated or a false header: .* needs 20000000000000 bytes")


def test_colours_vectors_and_time_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(tmp_path / "rgb.png")
    fails(tmp_path / "rgb.png", "3 components")
    sitk.WriteImage(sitk.Image([3, 4, 5, 2], sitk.sitkInt16), str(tmp_path / "4d.nrrd"))
    fails(tmp_path / "4d.nrrd", r"shape \(3, 4, 5, 2\) \(4D\)")
    sitk.WriteImage(sitk.Image([3, 4, 5, 1], sitk.sitkInt16), str(tmp_path / "41.nrrd"))
    assert read_volume(tmp_path / "41.nrrd").array.shape == (3, 4, 5)
    sitk.WriteImage(sitk.Image([3, 4, 5], sitk.sitkComplexFloat32), str(tmp_path / "complex.mha"))
    fails(tmp_path / "complex.mha", "components|complex")


def test_singular_directions_and_values(tmp_path: Path) -> None:
    text = (
        "NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 2 2\nencoding: raw\n"
        "space directions: (1,0,0) (1,0,0) (0,0,1)\nspace origin: (0,0,0)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(text.encode() + b"\0" * 8)
    fails(tmp_path / "a.nrrd", "singular|determinant|direction", Exception)
    like = volume(dtype="float32")
    like.array[0, 0, 0] = np.nan
    fails(write_volume(tmp_path / "nan.mha", like.array, like), "1 of 60 voxels")


def test_label_maps_survive_the_way_from_nifti_to_nrrd(tmp_path: Path) -> None:
    like = volume(dtype="float64", affine=affine_for("LPS"))
    path = write_volume(tmp_path / "a.nii.gz", like.array, like)
    copy = write_volume(tmp_path / "a.nrrd", read_volume(path).array, read_volume(path))
    assert read_label_map(copy).array.dtype == np.uint8
    assert read_label_map(copy).grid.displacement_mm(read_grid(path)) < 1e-5


@pytest.mark.parametrize(
    ("unit", "is_noted"),
    [('"um" "um" "um"', True), ('"mm" "mm" "mm"', False), ('"m" "m" "m"', True), ('"" "" ""', False)],
)
def test_a_unit_other_than_mm_is_noted_in_nrrd(tmp_path: Path, unit: str, is_noted: bool) -> None:
    space = (
        f"space: right-anterior-superior\nspace directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (1,2,3)\n"
        f"space units: {unit}\n"
    )
    for fields in (space, f"spacings: 2 3 4\nunits: {unit}\n"):
        text = f"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nendian: little\nencoding: raw\n{fields}\n"
        (tmp_path / "a.nrrd").write_bytes(text.encode() + np.arange(24, dtype="<i2").tobytes())
        result = read_volume(tmp_path / "a.nrrd", is_quiet=True)
        assert result.grid.spacing == pytest.approx((2, 3, 4))
        assert len(result.notes) == is_noted
        if is_noted:
            assert "a.nrrd" in result.notes[0]
            assert f" {unit.split(chr(34))[1]} " in result.notes[0]


def test_a_unit_other_than_mm_is_noted_in_metaimage(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "a.mha", volume().array, volume())
    assert read_volume(path).notes == []
    path.write_bytes(path.read_bytes().replace(b"ElementType", b"DistanceUnits = um\nElementType", 1))
    with pytest.warns(UserWarning, match=r"a\.mha: .*um"):
        np.testing.assert_array_equal(read_volume(path).array, volume().array)
