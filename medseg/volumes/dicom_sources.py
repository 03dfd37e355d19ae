"""The headers of a DICOM series as what is derived from it needs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medseg.errors import VolumeError
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
