"""Write a label map as a DICOM Segmentation that refers to its source series. Needs highdicom, an extra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from medseg.errors import GeometryError, VolumeError, one_line
from medseg.volumes.files import replacing
from medseg.volumes.volume import Volume

# An organisation may define its own codes under a designator that begins with 99 (PS3.16, section 8).
OWN_CODES = "99MEDSEG"
SERIES_NUMBER = 1
LONG_STRING = 64
# Elements that may be empty but not absent (type 2). Anonymisers tend to delete them.
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip
SAME_AS_META = {"SOPClassUID": "MediaStorageSOPClassUID", "SOPInstanceUID": "MediaStorageSOPInstanceUID"}
SERIES_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")


@dataclass(frozen=True)
class SegmentationAlgorithm:
    """Model and software that computed a segmentation.

    Args:
        name: name of the model.
        version: version of the software.
        serial_number: identifies the model among others of its name, such as the digest of its weights.
    """

    name: str
    version: str
    serial_number: str = "unknown"


def check_highdicom(path: Path) -> None:
    """Check that the extra is installed.

    Raises:
        VolumeError: highdicom is not installed.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise VolumeError(f"{path}: DICOM SEG needs highdicom; pip install 'medseg[dicom]'") from error


def write_dicom_seg(
    path: Path | str, array: np.ndarray, like: Volume, labels: Mapping[str, int], algorithm: SegmentationAlgorithm
) -> list[str]:
    """Write a label map as a DICOM Segmentation of type BINARY, atomically.

    Segments are numbered from 1 in the order of the label values and carry the label names. A label without voxels
    keeps its segment but has no frame. Patient, study and frame of reference are those of the series. A plan holds
    label names and no codes, so the property type of a segment is the name under a private designator, and its category
    is "Tissue".

    Args:
        path: the output, ending in .dcm.
        array: label values in the axis order of `like`.
        like: the DICOM series that was segmented.
        labels: value of each label by name; 0 is the background and gets no segment.
        algorithm: named in every segment, with the type AUTOMATIC.

    Returns:
        Warnings, one per line, such as identifiers that an anonymiser had emptied.

    Raises:
        VolumeError: `like` is no DICOM series, highdicom is not installed, or the file cannot be written.
        GeometryError: the array's shape differs from the grid.
    """
    path = Path(path)
    if array.shape != like.grid.shape:
        raise GeometryError(
            f"{path}: not written: array shape {array.shape} differs from {like.grid.shape} of {like.name}"
        )
    check_highdicom(path)
    import highdicom

    named = sorted((value, name) for name, value in labels.items() if value != 0)
    if not named:
        raise VolumeError(f"{path}: not written: DICOM SEG needs a label beside the background")
    sources, completed = _source_headers(like)
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=_frames(array, [value for value, _ in named]),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(number, name, algorithm) for number, (_, name) in enumerate(named, 1)],
            series_instance_uid=highdicom.UID(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="medseg",
            manufacturer_model_name=_text(algorithm.name),
            software_versions=_text(algorithm.version),
            device_serial_number=_text(algorithm.serial_number),
            series_description=_text(f"medseg {algorithm.name}"),
            content_description="Research use only",
            specific_character_set="ISO_IR 192",  # UTF-8, which can encode every label name and patient name
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise VolumeError(
            f"{path}: no DICOM SEG can be written for {like.name}: {one_line(error)}; use nifti"
        ) from error
    with replacing(path) as temporary:
        segmentation.save_as(temporary)
    if not completed:
        return []
    return [
        f"{', '.join(completed)} empty in the DICOM series: the DICOM SEG has generated identifiers, by which an "
        "archive will not find the study"
    ]


def _source_headers(series: Volume) -> tuple[list[Dataset], list[str]]:
    """Read one header per slice, in the order of the volume's last axis, and complete empty identifiers.

    Anonymisers sometimes empty the identifiers that a DICOM Segmentation must refer to. Those of an image are taken
    from its file's meta header, which must hold the same value. Those of study, series and frame of reference are
    generated from the images' identifiers, so that every run generates the same. Nothing is added about the patient.

    Args:
        series: a volume that was read from a DICOM series.

    Returns:
        The headers, and the names of the identifiers that were generated.

    Raises:
        VolumeError: the volume is no DICOM series, or an image of it has no identifier at all.
    """
    if series.format != "dicom":
        raise VolumeError(
            f"{series.name}: DICOM SEG refers to the slices of a DICOM series, found {series.format}; choose another "
            "format, such as nifti"
        )
    headers = [dcmread(file, stop_before_pixels=True, force=True) for file in series.header["files"]]
    for header, file in zip(headers, series.header["files"], strict=True):
        for keyword, meta_keyword in SAME_AS_META.items():
            if not header.get(keyword):
                setattr(header, keyword, header.file_meta.get(meta_keyword, ""))
            if not header.get(keyword):
                raise VolumeError(f"{Path(file)}: has no {keyword}, by which DICOM SEG refers to it; export it again")
        for keyword in MAY_BE_EMPTY:
            if keyword not in header:
                setattr(header, keyword, "")
    image_uids = sorted(header.SOPInstanceUID for header in headers)
    missing = [keyword for keyword in SERIES_UIDS if not all(header.get(keyword) for header in headers)]
    for keyword in missing:
        uid = generate_uid(entropy_srcs=[keyword, *image_uids])
        for header in headers:
            setattr(header, keyword, uid)
    return headers, missing


def _frames(array: np.ndarray, values: list[int]) -> np.ndarray:
    """Convert label values (columns, rows, slices) to segment numbers (slices, rows, columns)."""
    numbers = np.zeros(int(array.max(initial=0)) + 1, dtype=np.uint8 if len(values) < 2**8 else np.uint16)
    for number, value in enumerate(values, 1):
        if value < len(numbers):
            numbers[value] = number
    return numbers[array].T


def _segment(number: int, name: str, algorithm: SegmentationAlgorithm) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=_text(name),
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=highdicom.sr.CodedConcept(str(number), OWN_CODES, _text(name)),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=_text(algorithm.name), family=codes.DCM.ArtificialIntelligence, version=_text(algorithm.version)
        ),
    )


def _text(value: str) -> str:
    """Shorten to a DICOM long string: at most 64 characters, and no backslash, which separates values."""
    return value.replace("\\", "/").strip()[:LONG_STRING]
