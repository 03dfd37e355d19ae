"""Writing a label map as a DICOM Segmentation that refers to the series it was made from (highdicom, an extra)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.errors import GeometryError, VolumeError, one_line
from medseg.volumes.files import replacing
from medseg.volumes.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset


# Elements that may be empty but not absent (type 2); anonymisers tend to delete them.
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip
SAME_AS_META = {"SOPClassUID": "MediaStorageSOPClassUID", "SOPInstanceUID": "MediaStorageSOPInstanceUID"}
OF_THE_SERIES = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")


def source_headers(series: Volume) -> tuple[list[Dataset], list[str]]:
    """One data set without voxels a slice, in the order of the volume's last axis, and what had to be completed.

    Identifiers that an anonymiser emptied are completed so that the series can be referred to: those of an image from
    its file's meta header, which must be equal; those of study, series and frame of reference by UIDs made from the
    images' own, the same in every run. Nothing is said about the patient that the series does not say.

    Raises:
        VolumeError: the volume is no DICOM series, or an image of it has no identifier at all.
    """
    from pydicom import dcmread
    from pydicom.uid import generate_uid

    if series.format != "dicom":
        raise VolumeError(
            f"{series.name}: DICOM SEG refers to the slices of a DICOM series, found {series.format}; choose another "
            "format, such as nifti"
        )
    found = [dcmread(file, stop_before_pixels=True) for file in series.header["files"]]
    for header, file in zip(found, series.header["files"], strict=True):
        for keyword, same in SAME_AS_META.items():
            if not header.get(keyword):
                setattr(header, keyword, header.file_meta.get(same, ""))
            if not header.get(keyword):
                raise VolumeError(f"{Path(file)}: has no {keyword}, by which DICOM SEG refers to it; export it again")
        for keyword in MAY_BE_EMPTY:
            if keyword not in header:
                setattr(header, keyword, "")
    images = sorted(header.SOPInstanceUID for header in found)
    absent = [keyword for keyword in OF_THE_SERIES if not all(header.get(keyword) for header in found)]
    for keyword in absent:
        made = generate_uid(entropy_srcs=[keyword, *images])
        for header in found:
            setattr(header, keyword, made)
    return found, absent


# DICOM lets an organisation name codes of its own under a designator that begins with 99 (PS3.16, section 8).
OWN_CODES = "99MEDSEG"
SERIES_NUMBER = 1
LONG_STRING = 64


@dataclass(frozen=True)
class SegmentationAlgorithm:
    """What made a segmentation.

    Args:
        name: of the model.
        version: of the software.
        serial_number: what tells this model from others of its name, such as the digest of its weights.
    """

    name: str
    version: str
    serial_number: str = "unknown"


def check_highdicom(path: Path) -> None:
    """Raise unless the extra is installed.

    Raises:
        VolumeError: highdicom or pydicom is absent.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise VolumeError(f"{path}: DICOM SEG needs highdicom; pip install 'medseg[dicom]'") from error


def write_dicom_seg(
    path: Path | str, array: np.ndarray, like: Volume, labels: Mapping[str, int], algorithm: SegmentationAlgorithm
) -> list[str]:
    """Write a label map as a DICOM Segmentation of type BINARY, whole or not at all.

    Segments are numbered from 1 in the order of the labels' values and carry their names; a label without voxels keeps
    its segment and has no frame. Patient, study and frame of reference are the series' own. A plan knows names, not
    codes: the property's type is the name itself under a private designator, its category "Tissue".

    Args:
        path: the output, ending in .dcm.
        array: label values in the axis order of ``like``.
        like: the DICOM series that was segmented.
        labels: value of each label by name; 0 is the background and gets no segment.
        algorithm: named in every segment, of type AUTOMATIC.

    Returns:
        What the user should know, such as identifiers that an anonymiser had emptied; usually nothing.

    Raises:
        VolumeError: ``like`` is no DICOM series, highdicom is absent, or the file cannot be written.
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
    sources, completed = source_headers(like)
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
            specific_character_set="ISO_IR 192",  # UTF-8 holds the labels' names and whatever the source holds
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise VolumeError(f"{path}: no DICOM SEG can be made of {like.name}: {one_line(error)}; use nifti") from error
    with replacing(path) as temporary:
        segmentation.save_as(temporary)
    if not completed:
        return []
    return [
        f"{', '.join(completed)} empty in the DICOM series: the DICOM SEG has identifiers made from the images' own, "
        "by which an archive will not find the study"
    ]


def _frames(array: np.ndarray, values: list[int]) -> np.ndarray:
    """Segment numbers (slices, rows, columns) of label values (columns, rows, slices)."""
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
    """A DICOM long string: at most 64 characters, no backslash, which separates values."""
    return value.replace("\\", "/").strip()[:LONG_STRING]
