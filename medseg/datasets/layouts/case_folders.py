"""Read a folder per case, which holds the images and the label map of that case."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from medseg.datasets.layouts.folder_layout import Layout, folders_in, images_in, names_of
from medseg.datasets.layouts.pairing import LABEL_ROLE, complete_cases
from medseg.datasets.layouts.two_folders import is_of_images, is_of_labels
from medseg.volumes import stem_of
from medseg.volumes.dicom.series_files import looks_like_dicom


def find(folder: Path) -> Layout | None:
    """Return the layout of a folder, or None if few of its folders hold an image and a label map."""
    files = {path: images_in(path) for path in folders_in(folder)}
    files = {
        path: images
        for path, images in files.items()
        if images and not is_of_labels(Path(path.name)) and not is_of_images(Path(path.name))
    }
    images: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    label_of: dict[str, Path] = {}
    problems: list[str] = []
    dicom: list[str] = []
    roles: Counter[str] = Counter()
    for path, of_case in files.items():
        labels = [file for file in of_case if LABEL_ROLE.fullmatch(_role(file, path))]
        roles.update({_role(file, path) for file in labels})
        if len(labels) > 1:
            problems.append(
                f"{path}: holds {len(labels)} label maps ({names_of(labels)}); keep one per case, or write a manifest"
            )
        elif not labels:
            problems.append(f"{path}: holds no label map ({names_of(of_case)}); add one, or move the folder")
        elif len(of_case) == 1 and (series := _dicom_series(path)) is not None:
            dicom.append(
                f"{series}: holds a DICOM series where a training needs one file per image; convert it, such as with "
                f"dcm2niix, to {path / 'image.nii.gz'}"
            )
        elif len(of_case) == 1:
            problems.append(f"{path}: holds no image beside the label map {labels[0].name}; add it, or move the folder")
        else:
            label_of[path.name] = labels[0]
            for file in of_case:
                if file != labels[0]:
                    images[path.name][_role(file, path)].append(file)
    if len(label_of) + len(dicom) < max(1, len(files) / 2):
        return None
    cases, ends, more = complete_cases(images, label_of)
    return Layout("a folder per case", folder, ends, tuple(cases), (*dicom, *problems, *more))


def _dicom_series(folder: Path) -> Path | None:
    """Return the folder itself or the one in it that holds DICOM files, or None."""
    for place in (folder, *folders_in(folder)):
        if any(file.is_file() and looks_like_dicom(file) for file in place.iterdir()):
            return place
    return None


def _role(file: Path, folder: Path) -> str:
    """Return the part of a file's name that is not the name of its folder: "seg" for `p1/p1_seg.nii.gz`."""
    return stem_of(file).removeprefix(folder.name).strip("_-. ").lower()
