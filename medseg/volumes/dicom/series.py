"""A DICOM series, read slice by slice after its geometry has been proven regular."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the field's spelling)

from medseg.errors import GeometryError, VolumeError
from medseg.volumes.dicom.headers import DicomSlice, looks_like_dicom, read_slice_header
from medseg.volumes.grid import Grid
from medseg.volumes.itk import LPS_TO_RAS, itk_error, itk_name
from medseg.volumes.volume import Volume

# Positions are decimal text, often rounded to 0.01 mm; a missing slice changes a step by its whole length.
STEP_TOLERANCE = 0.1
DUPLICATE_STEP_MM = 1e-3
DIRECTION_TOLERANCE = 1e-3
TILT_DEGREES = 0.2


def read_dicom(path: Path) -> Volume:
    """Read a folder that holds one series, or one file of it as a volume one voxel thick.

    Voxels are in the units of the rescale slope and intercept (Hounsfield units in CT). Slices are ordered along the
    normal of the image plane, as ITK does.

    Raises:
        VolumeError: no DICOM image in the folder, a damaged slice, several series, colour, or several frames in a file.
        GeometryError: slices of differing size or orientation, at the same place, with a gap, or with gantry tilt. The
            line names the file.
    """
    slices = ordered_slices(path)
    grid = _grid(slices)
    array = _read_voxels(slices)
    header: dict[str, object] = dict(slices[0].metadata)
    header["files"] = tuple(str(item.path) for item in slices)
    return Volume(array=array, grid=grid, path=path, format="dicom", header=header)


def read_dicom_grid(path: Path) -> Grid:
    """The grid of a series from the headers of its files."""
    return _grid(ordered_slices(path))


def ordered_slices(path: Path) -> list[DicomSlice]:
    """The slices of the one series in a folder, checked and in the order of the array's last axis."""
    slices = [read_slice_header(file) for file in (dicom_files(path) if path.is_dir() else [path])]
    _check_one_series(path, slices)
    _check_same_plane(slices)
    slices.sort(key=lambda item: item.height_mm)
    _check_steps(slices)
    return slices


def dicom_files(folder: Path) -> list[Path]:
    """The files in a folder that look like DICOM, by name.

    Raises:
        VolumeError: there is none.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and looks_like_dicom(file))
    if not files:
        kind = "a folder without DICOM images" if any(folder.iterdir()) else "an empty folder"
        raise VolumeError(f"{folder}: {kind}; name the folder of the series or an image file")
    return files


def _check_one_series(path: Path, slices: list[DicomSlice]) -> None:
    counts = Counter(item.series_uid for item in slices)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        stranger = next(item for item in slices if item.series_uid != usual)
        raise VolumeError(
            f"{path}: mixes {len(counts)} series; {stranger.path.name} belongs to {stranger.series_uid} and "
            f"{counts[usual]} files to {usual}; keep one series a folder"
        )


def _check_same_plane(slices: list[DicomSlice]) -> None:
    shapes = Counter((item.columns, item.rows) for item in slices)
    first = next(item for item in slices if (item.columns, item.rows) == shapes.most_common(1)[0][0])
    for item in slices:
        if (item.columns, item.rows) != (first.columns, first.rows):
            raise GeometryError(
                f"{item.path}: has {item.columns}×{item.rows} pixels and the series {first.columns}×{first.rows}; "
                "remove the file if it is a localiser"
            )
        if not np.allclose(item.spacing_mm, first.spacing_mm, rtol=1e-3):
            raise GeometryError(
                f"{item.path}: has pixels of {item.spacing_mm} mm and the series {first.spacing_mm} mm; export it again"
            )
        if np.abs(item.directions - first.directions).max() > DIRECTION_TOLERANCE:
            raise GeometryError(
                f"{item.path}: its image plane is turned against the series; remove the file if it is a localiser"
            )


def _check_steps(slices: list[DicomSlice]) -> None:
    """Slices must follow each other at one distance, straight along the normal."""
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
            missing = round(float(step) / usual) - 1
            guess = f"about {missing} missing" if missing > 0 else "uneven spacing"
            raise GeometryError(
                f"{two}: lies {step:.3g} mm after {one.name} where {usual:.3g} mm is the rule ({guess}); "
                "complete the series or resample it"
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
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    for number, item in enumerate(slices):
        reader.SetFileName(itk_name(item.path))
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise itk_error(item.path, error) from error
        array[..., number] = sitk.GetArrayFromImage(image).reshape(item.rows, item.columns).T
    return array
