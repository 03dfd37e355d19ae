"""DICOM series: ITK's series reader is the oracle for good ones; an error about a bad one names the file."""

import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from volumes.dicom_series import NUM_SLICES, write_series, write_slice

from medseg.errors import GeometryError, VolumeError
from medseg.inference.cases import Case, find_cases
from medseg.volumes import as_channels, image_sha256, read_grid, read_volume, write_volume
from medseg.volumes.itk import affine_of

SHARED = Path(os.environ.get("MEDSEG_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
SERIES = SHARED / "ct_abdomen" / "dicom_series"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return write_series(tmp_path / "series")


def fails(path: Path, match: str, kind: type[Exception] = GeometryError) -> None:
    for read in (read_volume, read_grid):
        with pytest.raises(kind, match=match) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(str(path))


def with_itk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def test_a_series_equals_what_itk_reads(series: Path) -> None:
    volume, image = read_volume(series), with_itk(series)
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image).T)
    np.testing.assert_allclose(volume.grid.affine, affine_of(image), atol=1e-5)
    assert volume.grid.spacing == pytest.approx((0.5, 0.75, 2.5))
    assert volume.array[..., 0].mean() < volume.array[..., -1].mean()
    assert [Path(name).name for name in volume.header["files"]] == [f"{6 - n:02d}.dcm" for n in range(6)]
    assert read_grid(series) == volume.grid


@pytest.mark.data
@pytest.mark.skipif(not SERIES.is_dir(), reason=f"no shared data at {SERIES}")
def test_a_real_series_equals_what_itk_reads_and_makes_the_round_trip(tmp_path: Path) -> None:
    volume, image = read_volume(SERIES), with_itk(SERIES)
    assert volume.array.shape == (512, 512, 20)
    assert volume.array.min() < -900  # air in Hounsfield units: slope and intercept are applied
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image).T)
    np.testing.assert_allclose(volume.grid.affine, affine_of(image), atol=1e-9)
    for name in ("a.nii.gz", "a.mha"):
        again = read_volume(write_volume(tmp_path / name, volume.array, volume))
        np.testing.assert_array_equal(again.array, volume.array)
        assert again.grid.displacement_mm(volume.grid) < 1e-3


@pytest.mark.data
@pytest.mark.skipif(not SERIES.is_dir(), reason=f"no shared data at {SERIES}")
def test_a_missing_slice_of_a_real_series_is_named(tmp_path: Path) -> None:
    files = read_volume(SERIES).header["files"]
    for file in files[:8] + files[9:]:
        shutil.copy(file, tmp_path)
    fails(tmp_path, f"{Path(files[9]).name}: .*4 mm after {Path(files[7]).name}.* 2 mm")


def test_other_files_in_the_folder_are_ignored(series: Path) -> None:
    grid = read_grid(series)
    (series / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (series / "notes.txt").write_text("hello")
    (series / ".DS_Store").write_bytes(b"x")
    assert read_grid(series) == grid


def test_a_slice_alone_is_one_voxel_thick(tmp_path: Path) -> None:
    write_slice(tmp_path / "01.dcm", (10.0, -20.0, 5.0))
    volume = read_volume(tmp_path / "01.dcm")
    assert volume.array.shape == (9, 7, 1)
    assert volume.grid.spacing == pytest.approx((0.5, 0.75, 2.5))
    assert volume.notes == []


def test_a_slice_among_others_stands_for_its_series(series: Path) -> None:
    write_slice(series / "99.dcm", (10.0, -20.0, 20.0), uid="9.9.9")
    volume = read_volume(series / "03.dcm", is_quiet=True)
    assert [Path(name).name for name in volume.header["files"]] == [f"{6 - n:02d}.dcm" for n in range(6)]
    assert read_grid(series / "03.dcm") == volume.grid
    (note,) = volume.notes
    assert "03.dcm" in note
    assert "6 slices" in note
    assert read_volume(series / "99.dcm").array.shape == (9, 7, 1)
    (series / "99.dcm").unlink()
    np.testing.assert_array_equal(volume.array, read_volume(series).array)


def test_slice_files_of_one_series_are_one_case(series: Path) -> None:
    files = sorted(series.iterdir())
    assert find_cases([series / "*.dcm"]) == find_cases([series]) == [Case("series", (series,))]
    assert [case.paths for case in find_cases(files[:3])] == [(files[0],)]
    write_slice(series / "99.dcm", (10.0, -20.0, 20.0), uid="9.9.9")
    cases = find_cases([series / "*.dcm"])
    assert [case.paths for case in cases] == [(files[0],), (series / "99.dcm",)]
    assert [read_volume(case.paths[0], is_quiet=True).array.shape[2] for case in cases] == [6, 1]
    (volume,) = as_channels([str(file) for file in files])
    assert volume.array.shape == (9, 7, 6)


def test_a_change_of_any_slice_changes_the_digest(series: Path) -> None:
    before = image_sha256(series / "03.dcm")
    assert before == image_sha256(series / "03.dcm")
    write_slice(series / "01.dcm", (10.0, -20.0, 17.5), value=7)
    assert image_sha256(series / "03.dcm") != before


def other_object(path: Path, sop_class: str, uid: str) -> None:
    """Write an object that is no image, such as a structured report."""
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SeriesInstanceUID = sop_class, "1.2.3.99", uid
    dataset.PatientID, dataset.Modality = "4711", "SR"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(
    ("sop_class", "kind"),
    [
        ("1.2.840.10008.5.1.4.1.1.88.11", "Basic Text SR"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "Presentation State"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "RT Structure Set"),
        ("1.2.840.10008.5.1.4.1.1.66", "Raw Data"),
        ("1.3.12.2.1107.5.9.1", r"1\.3\.12\.2\.1107\.5\.9\.1"),
    ],
)
@pytest.mark.parametrize("uid", ["1.2.3.4", "7.7.7"])
def test_other_objects_are_left_out_and_named(series: Path, sop_class: str, kind: str, uid: str) -> None:
    expected = read_volume(series)
    assert expected.notes == []
    other_object(series / "00.dcm", sop_class, uid)
    with pytest.warns(UserWarning, match=rf"00\.dcm.*{kind}"):
        volume = read_volume(series)
    np.testing.assert_array_equal(volume.array, expected.array)
    assert volume.grid == expected.grid
    assert find_cases([series / "*.dcm"]) == [Case("series", (series,))]
    for file in series.iterdir():
        if file.name != "00.dcm":
            file.unlink()
    fails(series / "00.dcm", rf"00\.dcm.*{kind}", VolumeError)
    with pytest.raises(VolumeError, match=r"00\.dcm"):
        read_volume(series)


@pytest.mark.parametrize("has_suffix", [True, False])
@pytest.mark.parametrize("num_stripped", [1, NUM_SLICES])
@pytest.mark.parametrize("keeps_meta", [True, False])
def test_slices_without_a_preamble_are_read(
    series: Path, has_suffix: bool, num_stripped: int, keeps_meta: bool
) -> None:
    expected = read_volume(series)
    for file in sorted(series.iterdir())[:num_stripped]:
        whole = file.read_bytes()
        meta_length = int.from_bytes(whole[140:144], "little")
        stripped = whole[132:] if keeps_meta else whole[144 + meta_length :]
        file.unlink()
        (file if has_suffix else file.with_suffix("")).write_bytes(stripped)
    volume = read_volume(series)
    np.testing.assert_array_equal(volume.array, expected.array)
    assert volume.grid == expected.grid


def test_a_missing_slice_is_refused(series: Path) -> None:
    (series / "03.dcm").unlink()
    fails(series, r"02\.dcm: .*1 missing.* 5 mm after 04\.dcm.* 2\.5 mm")


def test_a_duplicate_slice_is_refused(series: Path) -> None:
    write_slice(series / "99.dcm", (10.0, -20.0, 10.0))
    fails(series, r"(99|04)\.dcm: lies at the same place as (99|04)\.dcm")


def test_two_series_in_one_folder_are_refused(series: Path) -> None:
    write_slice(series / "99.dcm", (10.0, -20.0, 20.0), uid="9.9.9")
    fails(series, r"mixes 2 series; 99\.dcm belongs to 9\.9\.9 and 6 files to 1\.2\.3\.4", VolumeError)


def test_a_localiser_is_refused(series: Path) -> None:
    write_slice(series / "99.dcm", (10.0, -20.0, 20.0), directions=(1, 0, 0, 0, 0, -1))
    fails(series, r"99\.dcm: its image plane is turned")
    write_slice(series / "99.dcm", (10.0, -20.0, 20.0), shape=(30, 30))
    fails(series, r"99\.dcm: .*30×30.*9×7")


def test_a_tilted_gantry_is_refused(tmp_path: Path) -> None:
    for number in range(NUM_SLICES):
        shift = 2.5 * number * np.tan(np.radians(15))
        write_slice(tmp_path / f"{number}.dcm", (10.0, -20.0 + shift, 2.5 * number))
    fails(tmp_path, r"5\.dcm: the series is tilted: slices move sideways by 15 degrees")


@pytest.mark.parametrize("spacing", [b"-75", b"0.0"])
def test_pixel_spacing_must_be_positive(series: Path, spacing: bytes) -> None:
    for file in series.iterdir():
        file.write_bytes(file.read_bytes().replace(b".75\\.5", spacing + b"\\.5"))
    fails(series, rf"01\.dcm: .*{float(spacing)}.* must be above 0")


def test_damaged_slices_are_named(series: Path) -> None:
    whole = (series / "03.dcm").read_bytes()
    (series / "03.dcm").write_bytes(whole[:-60])
    fails(series, r"03\.dcm: (truncated|damaged)", VolumeError)
    (series / "03.dcm").write_bytes(whole[:200])
    fails(series, r"03\.dcm: ", Exception)
    (series / "03.dcm").write_bytes(b"")
    fails(series, r"03\.dcm: is empty", VolumeError)


def test_an_element_that_claims_more_than_the_file_holds(series: Path) -> None:
    """GDCM alone would allocate as many bytes as the length states."""
    whole = bytearray((series / "03.dcm").read_bytes())
    start = whole.rindex(b"\xe0\x7f\x10\x00")  # implicit VR: the length follows the tag
    whole[start + 4 : start + 8] = (4_000_000_000).to_bytes(4, "little")
    (series / "03.dcm").write_bytes(whole)
    fails(series, r"03\.dcm: truncated or damaged: element \(7FE0,0010\) claims 4000000000 bytes", VolumeError)
    start = whole.index(b"\x02\x00\x01\x00OB")
    whole[start + 4 : start + 6] = b"\x00\xff"
    (series / "03.dcm").write_bytes(whole)
    fails(series, r"03\.dcm: .*damaged", VolumeError)


def test_flipped_bytes_never_raise_another_error(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.dcm", (0.0, 0.0, 0.0))
    whole = (tmp_path / "a.dcm").read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(150):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole) - 126, 3):
            damaged[position] = rng.integers(0, 256)
        (tmp_path / "a.dcm").write_bytes(damaged)
        try:
            read_volume(tmp_path / "a.dcm")
        except (VolumeError, GeometryError) as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert not [message for message in messages if "\n" in message or str(tmp_path) not in message]


def test_compressed_slices_are_read(tmp_path: Path) -> None:
    for number in range(3):
        for folder in ("plain", "packed"):
            (tmp_path / folder).mkdir(exist_ok=True)
            file = tmp_path / folder / f"{number}.dcm"
            write_slice(file, (0.0, 0.0, 2.5 * number), shape=(40, 30), is_packed=folder == "packed")
    packed = read_volume(tmp_path / "packed")
    assert packed.header["TransferSyntaxUID"] == "1.2.840.10008.1.2.4.90"  # JPEG 2000, lossless
    np.testing.assert_array_equal(packed.array, read_volume(tmp_path / "plain").array)
    file = tmp_path / "packed" / "1.dcm"
    file.write_bytes(file.read_bytes()[:-100])
    fails(tmp_path / "packed", r"1\.dcm: truncated or damaged", VolumeError)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    fails(tmp_path, "an empty folder", VolumeError)
    (tmp_path / "notes.txt").write_text("hello")
    fails(tmp_path, "a folder without DICOM images", VolumeError)
