"""DICOM SEG: files that medseg writes are read by highdicom and pydicom and compared with the series."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from volumes.dicom_series import write_series

from medseg.errors import GeometryError, VolumeError
from medseg.volumes import Volume, read_volume
from medseg.volumes.dicom.seg import SegmentationAlgorithm, write_dicom_seg
from medseg.volumes.itk import LPS_TO_RAS

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

SHARED = Path(os.environ.get("MEDSEG_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
SERIES = SHARED / "ct_abdomen" / "dicom_series"
ALGORITHM = SegmentationAlgorithm("organs_segmentation", "0.1.0", "f" * 64)
LABELS = {"background": 0, "gallbladder": 9, "liver": 2, "Läsion": 300}


def complete(folder: Path, **elements: object) -> Path:
    """Add elements that a scanner writes and ITK does not."""
    for file in folder.iterdir():
        image = pydicom.dcmread(file)
        for keyword, value in {"PatientID": "4711", **elements}.items():
            setattr(image, keyword, value)
        image.save_as(file)
    return folder


def segmented(volume: Volume) -> np.ndarray:
    array = np.zeros(volume.array.shape, np.int16)
    order = np.argsort(volume.array, axis=None)
    array.flat[order[: array.size // 3]] = 2
    array[..., 1] = 300
    return array


def read_back(path: Path, num_segments: int) -> tuple[np.ndarray, np.ndarray]:
    """Segment numbers and affine in medseg's axes (columns, rows, slices; RAS+), by highdicom's own reading."""
    found = highdicom.seg.segread(path).get_volume(
        segment_numbers=range(1, num_segments + 1), combine_segments=True, allow_missing_positions=True
    )
    affine = LPS_TO_RAS @ found.affine[:, [2, 1, 0, 3]]
    return found.array.T, affine


@pytest.mark.parametrize("has_empty_ends", [False, True])
def test_frames_segments_and_geometry_match_the_series(tmp_path: Path, has_empty_ends: bool) -> None:
    folder = complete(write_series(tmp_path / "series"), PatientName="Müller^Zoë", SpecificCharacterSet="ISO_IR 100")
    volume = read_volume(folder)
    array = segmented(volume)
    if has_empty_ends:  # the first and the last slice are empty, so their frames are left out
        array[..., [0, -1]] = 0
    assert write_dicom_seg(tmp_path / "a.dcm", array, volume, LABELS, ALGORITHM) == []
    file = pydicom.dcmread(tmp_path / "a.dcm")
    assert (file.Modality, file.SegmentationType, file.Manufacturer) == ("SEG", "BINARY", "medseg")
    assert (file.PatientID, str(file.PatientName), file.StudyInstanceUID) == ("4711", "Müller^Zoë", "1.2.3")
    assert file.FrameOfReferenceUID == "1.2.3.5"
    described = [(s.SegmentNumber, s.SegmentLabel, s.SegmentAlgorithmType) for s in file.SegmentSequence]
    assert described == [(1, "liver", "AUTOMATIC"), (2, "gallbladder", "AUTOMATIC"), (3, "Läsion", "AUTOMATIC")]
    assert {s.SegmentAlgorithmName for s in file.SegmentSequence} == {"organs_segmentation"}
    # a frame a slice and segment that has voxels there
    pairs = {(value, k) for value in (2, 9, 300) for k in range(6) if (array[..., k] == value).any()}
    assert file.NumberOfFrames == len(pairs)
    sources = {pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in folder.iterdir()}
    referenced = {i.ReferencedSOPInstanceUID for i in file.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == sources
    numbers, affine = read_back(tmp_path / "a.dcm", 3)
    first = next(k for k in range(6) if array[..., k].any())
    last = max(k for k in range(6) if array[..., k].any())
    # highdicom may count the slices from the other end, so each of its planes is looked up in the series' grid
    to_series = np.linalg.inv(volume.grid.affine) @ affine
    np.testing.assert_allclose(to_series[:2, :2], np.eye(2), atol=1e-6)
    index = np.stack([to_series @ (0, 0, k, 1) for k in range(numbers.shape[2])])
    planes = np.rint(index[:, 2]).astype(int)
    np.testing.assert_allclose(index[:, :3], [(0, 0, plane) for plane in planes], atol=1e-3)
    assert sorted(planes) == list(range(first, last + 1))
    expected = np.select([array == 2, array == 9, array == 300], [1, 2, 3])
    np.testing.assert_array_equal(numbers, expected[..., planes])


def test_an_empty_segmentation_has_segments_without_voxels(tmp_path: Path) -> None:
    volume = read_volume(complete(write_series(tmp_path / "series")))
    write_dicom_seg(tmp_path / "a.dcm", np.zeros(volume.array.shape, np.uint8), volume, LABELS, ALGORITHM)
    file = pydicom.dcmread(tmp_path / "a.dcm")
    assert [s.SegmentLabel for s in file.SegmentSequence] == ["liver", "gallbladder", "Läsion"]
    assert not np.any(file.pixel_array)


def test_an_anonymised_series_gets_no_patient_and_reproducible_identifiers(tmp_path: Path) -> None:
    folder = complete(write_series(tmp_path / "series"))
    for path in folder.iterdir():
        image = pydicom.dcmread(path)
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            if keyword in image:
                del image[keyword]
        image.StudyInstanceUID = image.SOPClassUID = image.SOPInstanceUID = ""
        image.save_as(path, enforce_file_format=False)
    volume = read_volume(folder)
    studies = set()
    for name in ("a.dcm", "b.dcm"):
        (note,) = write_dicom_seg(tmp_path / name, segmented(volume), volume, LABELS, ALGORITHM)
        assert note.startswith("StudyInstanceUID empty in the DICOM series")
        file = pydicom.dcmread(tmp_path / name)
        assert not any((file.PatientID, file.PatientName, file.PatientBirthDate, file.PatientSex, file.StudyID))
        studies.add(file.StudyInstanceUID)
        item = file.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
        assert item.ReferencedSOPInstanceUID
        assert item.ReferencedSOPClassUID
    assert len(studies) == 1


def test_other_inputs_and_shapes_are_refused(tmp_path: Path) -> None:
    volume = read_volume(complete(write_series(tmp_path / "series")))
    array = segmented(volume)
    memory = Volume(volume.array, volume.grid)
    target = tmp_path / "out" / "a.dcm"
    with pytest.raises(VolumeError, match=r"^image in memory: .*memory"):
        write_dicom_seg(target, array, memory, LABELS, ALGORITHM)
    with pytest.raises(GeometryError, match=r"a\.dcm: not written: array shape"):
        write_dicom_seg(target, array[1:], volume, LABELS, ALGORITHM)
    with pytest.raises(VolumeError, match=r"a\.dcm: .*label"):
        write_dicom_seg(target, array, volume, {"background": 0}, ALGORITHM)
    assert not target.parent.exists()


def test_a_missing_highdicom_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = read_volume(complete(write_series(tmp_path / "series")))
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(VolumeError, match=r"a\.dcm: DICOM SEG needs highdicom; pip install 'medseg\[dicom\]'"):
        write_dicom_seg(tmp_path / "a.dcm", segmented(volume), volume, LABELS, ALGORITHM)
    assert not (tmp_path / "a.dcm").exists()


@pytest.mark.data
@pytest.mark.skipif(not SERIES.is_dir(), reason=f"no shared data at {SERIES}")
def test_a_real_series_makes_the_round_trip(tmp_path: Path) -> None:
    """The anonymiser of this series emptied even the identifiers of study, series and images."""
    volume = read_volume(SERIES)
    array = np.select([volume.array > 200, volume.array > -300], [5, 1]).astype(np.uint8)
    labels = {"background": 0, "soft tissue": 1, "bone": 5}
    (note,) = write_dicom_seg(tmp_path / "a.dcm", array, volume, labels, ALGORITHM)
    assert note.startswith("StudyInstanceUID, SeriesInstanceUID empty")
    numbers, affine = read_back(tmp_path / "a.dcm", 2)
    expected = np.select([array == 1, array == 5], [1, 2])
    if not np.allclose(affine, volume.grid.affine, atol=1e-3):  # counted from the other end
        last = volume.grid.affine @ (0, 0, array.shape[2] - 1, 1)
        np.testing.assert_allclose(affine[:3, 3], last[:3], atol=1e-3)
        np.testing.assert_allclose(affine[:3, :3], volume.grid.affine[:3, :3] * (1, 1, -1), atol=1e-6)
        expected = expected[..., ::-1]
    np.testing.assert_array_equal(numbers, expected)
