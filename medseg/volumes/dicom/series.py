"""Read a DICOM series after checking that its slices form a regular grid.

pydicom reads the headers. GDCM, through SimpleITK, decodes the pixels, because it knows every transfer syntax.
"""

from __future__ import annotations

import math
import mmap
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the field's spelling)
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import VR

from medseg.errors import GeometryError, MedsegError, VolumeError, one_line
from medseg.volumes.dicom.series_files import object_kind, read_elements, series_files
from medseg.volumes.formats import check_readable
from medseg.volumes.grid import Grid
from medseg.volumes.itk import LPS_TO_RAS, itk_error, itk_name, numpy_type
from medseg.volumes.streams import MAX_COMPRESSION
from medseg.volumes.volume import Volume

UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
PIXEL_ELEMENTS = ("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation")
KNOWN_VRS = {vr.value for vr in VR}
UNDEFINED_LENGTH = 0xFFFFFFFF
# Positions are decimal text, often rounded to 0.01 mm. A missing slice changes a step by its whole length.
STEP_TOLERANCE = 0.1
DUPLICATE_STEP_MM = 1e-3
DIRECTION_TOLERANCE = 1e-3
TILT_DEGREES = 0.2


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """Position and size of one slice in the patient, LPS+ mm.

    Args:
        path: the file.
        series_uid: identifier of the series.
        columns: pixels along axis i.
        rows: pixels along axis j.
        directions: unit vectors (2, 3): along which the column index grows (axis i), and the row index (axis j).
        spacing_mm: distance between pixels along i and j.
        position_mm: centre of the first pixel.
        thickness_mm: of the slice; 1 if the file does not say.
        dtype: of the voxels after the rescale slope and intercept.
        modality: such as "CT" or "MR"; "" if the file does not say.
        transfer_syntax: UID of the encoding of the pixels.
    """

    path: Path
    series_uid: str
    columns: int
    rows: int
    directions: np.ndarray
    spacing_mm: tuple[float, float]
    position_mm: np.ndarray
    thickness_mm: float
    dtype: np.dtype
    modality: str
    transfer_syntax: str

    @property
    def normal(self) -> np.ndarray:
        """Unit vector across the image plane."""
        return np.cross(self.directions[0], self.directions[1])

    @property
    def height_mm(self) -> float:
        """Position along the normal."""
        return float(self.position_mm @ self.normal)


def read_dicom(path: Path) -> Volume:
    """Read a folder that holds one series, or the series that a file belongs to.

    Voxels are in the units of the rescale slope and intercept (Hounsfield units in CT). Slices are ordered along the
    normal of the image plane, as ITK does.

    Args:
        path: the folder, or a file; then the files beside it with the same SeriesInstanceUID are read, too.

    Returns:
        The volume. Its header holds the "Modality", the "TransferSyntaxUID", the "files" in the order of the slices,
        and the "notes", which name files that are no images.

    Raises:
        VolumeError: no DICOM image in the folder, a damaged slice, several series, colour, or several frames in a file.
        GeometryError: slices of different size or orientation, at the same place, with a gap, or with gantry tilt. The
            line names the file.
    """
    slices, notes = _read_headers(path)
    grid = _grid(slices)
    array = _read_voxels(slices)
    header = {
        "Modality": slices[0].modality,
        "TransferSyntaxUID": slices[0].transfer_syntax,
        "files": tuple(str(item.path) for item in slices),
        "notes": tuple(notes),
    }
    return Volume(array=array, grid=grid, path=path, format="dicom", header=header)


def read_dicom_grid(path: Path) -> Grid:
    """Read the grid of a series from the headers of its files; raises as `read_dicom`."""
    return _grid(_read_headers(path)[0])


class NoImageError(VolumeError):
    """A DICOM file holds another object than an image."""


def _read_headers(path: Path) -> tuple[list[DicomSlice], list[str]]:
    """Read the headers of one series, check them, and sort them as the array's last axis; also return notes."""
    files = series_files(path)
    slices: list[DicomSlice] = []
    others: list[NoImageError] = []
    for file in files:
        try:
            slices.append(read_slice_header(file))
        except NoImageError as error:
            others.append(error)
    if not slices:
        raise others[0]
    notes = [f"{error}; left out" for error in others]
    if path.is_file() and len(slices) > 1:
        notes.append(f"{path}: is one of {len(slices)} slices of a series, which were read together")
    _check_one_series(path, slices)
    _check_same_plane(slices)
    slices.sort(key=lambda item: item.height_mm)
    _check_steps(slices)
    return slices, notes


def read_slice_header(path: Path) -> DicomSlice:
    """Read the header of one file.

    Raises:
        NoImageError: another object than an image.
        VolumeError: damaged, truncated, colour or several frames.
        GeometryError: without a usable position in the patient.
    """
    check_readable(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of unusual values, which are used or refused here
        dataset = _read_dataset(path)
        try:
            return _slice_from(dataset, path)
        except MedsegError:
            raise
        except Exception as error:  # pydicom converts a value when it is first used, and damaged bytes fail there
            raise VolumeError(f"{path}: damaged ({one_line(error)}); copy or export it again") from error


def _slice_from(dataset: Dataset, path: Path) -> DicomSlice:
    if kind := object_kind(dataset):
        raise NoImageError(f"{path}: is no image ({kind})")
    num_frames, num_samples = (_whole_number(dataset, key, path, 1) for key in ("NumberOfFrames", "SamplesPerPixel"))
    if num_frames > 1:
        raise VolumeError(f"{path}: holds {num_frames} frames; convert it with a tool such as dcm2niix first")
    if num_samples != 1:
        raise VolumeError(
            f"{path}: is a colour image where one number per voxel is expected; remove it from the series"
        )
    _check_pixel_elements(dataset, path)
    columns, rows = (_whole_number(dataset, key, path) for key in ("Columns", "Rows"))
    spacing = _numbers(dataset, "PixelSpacing", 2, path)
    if spacing.min() <= 0:
        raise GeometryError(f"{path}: its PixelSpacing {spacing.tolist()} must be above 0; export it again")
    directions = _numbers(dataset, "ImageOrientationPatient", 6, path).reshape(2, 3)
    if not np.allclose(directions @ directions.T, np.eye(2), atol=1e-2):
        raise GeometryError(
            f"{path}: its ImageOrientationPatient {directions.tolist()} is not two unit vectors; export it again"
        )
    transfer_syntax = _text(dataset.file_meta, "TransferSyntaxUID") or _usual_syntax(dataset)
    num_bits = _whole_number(dataset, "BitsAllocated", path, 16)
    num_bytes = len(dataset.get_item("PixelData").value or b"") if "PixelData" in dataset else 0
    _check_length(path, columns, rows, num_bits, num_bytes, is_compressed=transfer_syntax not in UNCOMPRESSED)
    return DicomSlice(
        path=path,
        series_uid=_text(dataset, "SeriesInstanceUID"),
        columns=columns,
        rows=rows,
        directions=directions,
        spacing_mm=(float(spacing[1]), float(spacing[0])),  # DICOM states the distance between rows first
        position_mm=_numbers(dataset, "ImagePositionPatient", 3, path),
        thickness_mm=_thickness(dataset),
        dtype=_stored_type(path),
        modality=_text(dataset, "Modality"),
        transfer_syntax=transfer_syntax,
    )


def _check_pixel_elements(dataset: Dataset, path: Path) -> None:
    """Check the elements that say what a pixel means; GDCM guesses the value of one that is missing."""
    for keyword in PIXEL_ELEMENTS:
        if dataset.get(keyword) in (None, ""):
            raise VolumeError(f"{path}: lacks the element {keyword}, which every DICOM image has; export it again")
    representation, allocated, stored = (
        _whole_number(dataset, keyword, path) for keyword in ("PixelRepresentation", "BitsAllocated", "BitsStored")
    )
    if representation not in (0, 1) or not 1 <= stored <= allocated:
        raise VolumeError(
            f"{path}: PixelRepresentation {representation}, BitsAllocated {allocated} and BitsStored {stored} "
            "contradict each other; export it again"
        )
    photometric = _text(dataset, "PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise VolumeError(
            f"{path}: its PhotometricInterpretation is {photometric!r} where MONOCHROME1 or MONOCHROME2 is expected; "
            "convert it to grey or remove it from the series"
        )
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        found = dataset.get(keyword)
        number = 1.0 if found in (None, "") else _float_or_nan(found)
        if not math.isfinite(number) or (keyword == "RescaleSlope" and number == 0) or isinstance(found, str):
            raise VolumeError(f"{path}: its {keyword} {found!r} cannot be used as a scale; export it again")


def _usual_syntax(dataset: Dataset) -> str:
    """Return the encoding of a file that does not state it."""
    is_implicit, is_little_endian = dataset.original_encoding
    if not is_little_endian:
        return str(ExplicitVRBigEndian)
    return str(ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian)


def _float_or_nan(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _read_dataset(path: Path) -> Dataset:
    """Read all elements of a file and check that each of them lies within the file.

    GDCM trusts the lengths in a file and allocates as much as they state, so a file with a false length must not reach
    it. A memory map is read instead of the file, because it returns at most what is there.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            dataset = read_elements(content, content[:132])
            _check_elements(dataset.file_meta.values(), path)
            _check_elements(dataset.values(), path)
            return dataset
    except VolumeError:
        raise
    except InvalidDicomError as error:
        raise VolumeError(f"{path}: named like a DICOM file, but not one; export it again") from error
    except Exception as error:  # pydicom raises a dozen types for damaged bytes
        raise VolumeError(f"{path}: truncated or damaged ({one_line(error)}); copy or export it again") from error


def _check_elements(elements: Iterable[Any], path: Path) -> None:
    for element in elements:
        if isinstance(element, RawDataElement):
            if element.VR is not None and element.VR not in KNOWN_VRS:  # GDCM would misread the length behind it
                raise VolumeError(
                    f"{path}: damaged: element {element.tag} has the unknown type {element.VR!r}; copy or export it "
                    "again"
                )
            num_bytes = len(element.value or b"")
            if element.length != UNDEFINED_LENGTH and num_bytes < element.length:
                raise VolumeError(
                    f"{path}: truncated or damaged: element {element.tag} claims {element.length} bytes and "
                    f"{num_bytes} are left; copy or export it again"
                )
            if element.VR == "SQ":
                element = Dataset({element.tag: element})[element.tag]
        if element.VR == "SQ":
            for item in element.value or ():
                _check_elements(item.values(), path)


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()


def _numbers(dataset: Dataset, keyword: str, count: int, path: Path) -> np.ndarray:
    try:
        found = dataset.get(keyword)
        values = np.array([float(value) for value in found])
    except (TypeError, ValueError):
        found, values = "no numbers", np.array([])
    if values.shape != (count,) or not np.isfinite(values).all():
        raise GeometryError(
            f"{path}: its {keyword} must be {count} numbers, found {found}; remove the file if it is no slice of the "
            "series"
        )
    return values


def _whole_number(dataset: Dataset, keyword: str, path: Path, default: int | None = None) -> int:
    try:
        value = dataset.get(keyword)
        return int(default if value in (None, "") else value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise VolumeError(f"{path}: is no DICOM image ({keyword} is no number); remove the file") from None


def _thickness(dataset: Dataset) -> float:
    try:
        thickness = float(dataset.get("SliceThickness") or 1)
    except (TypeError, ValueError):
        return 1.0
    return thickness if math.isfinite(thickness) and thickness > 0 else 1.0


def _check_length(path: Path, columns: int, rows: int, bits: int, num_bytes: int, is_compressed: bool) -> None:
    wanted, on_disk = columns * rows * (bits // 8), path.stat().st_size
    if not is_compressed and wanted > num_bytes:
        raise VolumeError(
            f"{path}: truncated: {columns}×{rows} pixels need {wanted} bytes, found {num_bytes}; copy or export it "
            "again"
        )
    if wanted < 1 or wanted > on_disk * (MAX_COMPRESSION if is_compressed else 1):
        raise VolumeError(
            f"{path}: truncated: {columns}×{rows} pixels need {wanted} bytes, the file has {on_disk}; copy or "
            "export it again"
        )


def _stored_type(path: Path) -> np.dtype:
    """Return the type that GDCM chooses for the pixels after slope and intercept."""
    reader = _pixel_reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise itk_error(path, error) from error
    return numpy_type(reader, path)


def _pixel_reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(itk_name(path))
    return reader


def _check_one_series(path: Path, slices: list[DicomSlice]) -> None:
    counts = Counter(item.series_uid for item in slices)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        other = next(item for item in slices if item.series_uid != usual)
        raise VolumeError(
            f"{path}: mixes {len(counts)} series; {other.path.name} belongs to {other.series_uid} and {counts[usual]} "
            f"files to {usual}; keep one series per folder"
        )


def _check_same_plane(slices: list[DicomSlice]) -> None:
    shapes = Counter((item.columns, item.rows) for item in slices)
    first = next(item for item in slices if (item.columns, item.rows) == shapes.most_common(1)[0][0])
    for item in slices:
        if (item.columns, item.rows) != (first.columns, first.rows):
            raise GeometryError(
                f"{item.path}: another size than the series; found {item.columns}×{item.rows} pixels, expected "
                f"{first.columns}×{first.rows}; remove the file if it is a localiser"
            )
        if not np.allclose(item.spacing_mm, first.spacing_mm, rtol=1e-3):
            raise GeometryError(
                f"{item.path}: another pixel spacing than the series; found {item.spacing_mm} mm, expected "
                f"{first.spacing_mm} mm; export it again"
            )
        if np.abs(item.directions - first.directions).max() > DIRECTION_TOLERANCE:
            raise GeometryError(
                f"{item.path}: its image plane is turned against the series; remove the file if it is a localiser"
            )


def _check_steps(slices: list[DicomSlice]) -> None:
    """Check that slices follow each other at one distance, straight along the normal."""
    if len(slices) < 2:
        return
    heights = np.array([item.height_mm for item in slices])
    steps = np.diff(heights)
    usual = float(np.median(steps[steps > DUPLICATE_STEP_MM])) if (steps > DUPLICATE_STEP_MM).any() else 0.0
    for number, step in enumerate(steps):
        one, two = slices[number].path, slices[number + 1].path
        if step <= DUPLICATE_STEP_MM:
            raise GeometryError(f"{two}: lies at the same place as {one.name}; remove the duplicate slice")
        if abs(step - usual) > STEP_TOLERANCE * usual:
            num_missing = round(float(step) / usual) - 1
            guess = f"about {num_missing} missing" if num_missing > 0 else "uneven spacing"
            raise GeometryError(
                f"{two}: uneven distance between slices ({guess}); found {step:.3g} mm after {one.name}, expected "
                f"{usual:.3g} mm; complete the series or resample it"
            )
    first, last = slices[0], slices[-1]
    path_mm = last.position_mm - first.position_mm
    sideways = path_mm - (path_mm @ first.normal) * first.normal
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(sideways), heights[-1] - heights[0])))
    if tilt > TILT_DEGREES:
        raise GeometryError(
            f"{last.path}: the series is tilted: slices move sideways by {tilt:.2g} degrees (gantry tilt); "
            "convert it with a tool that corrects the tilt, such as dcm2niix"
        )


def _grid(slices: list[DicomSlice]) -> Grid:
    first = slices[0]
    count = len(slices)
    thickness = (slices[-1].height_mm - first.height_mm) / (count - 1) if count > 1 else first.thickness_mm
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing_mm[0]
    affine[:3, 1] = first.directions[1] * first.spacing_mm[1]
    affine[:3, 2] = first.normal * thickness
    affine[:3, 3] = first.position_mm
    try:
        return Grid((first.columns, first.rows, count), LPS_TO_RAS @ affine)
    except GeometryError as error:
        raise GeometryError(f"{first.path}: {error}") from error


def _read_voxels(slices: list[DicomSlice]) -> np.ndarray:
    # Slices may differ in slope and so in type: the array takes the type that holds them all.
    dtype = np.result_type(*(item.dtype for item in slices))
    array = np.empty((slices[0].columns, slices[0].rows, len(slices)), dtype=dtype, order="F")
    for number, item in enumerate(slices):
        try:
            image = _pixel_reader(item.path).Execute()
        except RuntimeError as error:
            raise itk_error(item.path, error) from error
        array[..., number] = sitk.GetArrayFromImage(image).reshape(item.rows, item.columns).T
    return array
