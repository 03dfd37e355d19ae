"""Read BIDS folders: images of subjects, and label maps in the same folders or in `derivatives`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.datasets.layouts.folder_layout import Layout, images_below, names_of
from medseg.datasets.layouts.pairing import complete_cases
from medseg.errors import VolumeError
from medseg.volumes import read_channel_grid, stem_of

_LABEL_SUFFIXES = ("dseg", "mask", "seg", "label", "lesion")
_NO_IMAGES = ("probseg",)
_ENTITY = re.compile(r"([a-zA-Z]+)-([a-zA-Z0-9]+)")


@dataclass(frozen=True)
class BidsFile:
    """A file and what its name says: `sub-01_ses-2_T1w.nii.gz` has the entities sub and ses, and the suffix T1w."""

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def is_label(self) -> bool:
        """Return whether the file is a label map by its name."""
        return self.suffix in _LABEL_SUFFIXES or "seg" in self.entities


def parse(path: Path) -> BidsFile:
    """Read the entities and the suffix of a BIDS file name."""
    parts = stem_of(path).split("_")
    entities = {found[1]: found[2] for part in parts if (found := _ENTITY.fullmatch(part))}
    return BidsFile(path, entities, "" if _ENTITY.fullmatch(parts[-1]) else parts[-1])


def find(folder: Path) -> Layout | None:
    """Return the layout of a BIDS folder, or None if it has no folders `sub-*`.

    The label map of an image has the same subject and session (and run, acquisition, …). If several images of a session
    belong to a label map, those on its grid are its channels.
    """
    if not any(path.is_dir() for path in folder.glob("sub-*")):
        return None
    files = [parse(path) for path in images_below(folder)]
    files = [file for file in files if "sub" in file.entities and file.suffix not in _NO_IMAGES]
    images = [file for file in files if not file.is_label]
    of_subject: dict[tuple[str, str | None], list[BidsFile]] = defaultdict(list)
    for image in images:
        of_subject[_subject(image)].append(image)
    by_end: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    label_of: dict[str, Path] = {}
    problems: list[str] = []
    used: set[Path] = set()
    for label in (file for file in files if file.is_label):
        try:
            channels = _images_of(label, of_subject[_subject(label)])
        except VolumeError as error:
            problems.append(str(error))
            continue
        if not channels:
            problems.append(f"{label.path}: has no image of the same subject and session; add it, or move the file")
            continue
        case = "_".join(f"{key}-{value}" for key, value in channels[0].entities.items() if _is_shared(key, channels))
        first = label_of.setdefault(case, label.path)
        if first != label.path:
            problems.append(
                f"{label.path}: is a second label map of {case} beside {first.relative_to(folder)}; keep one of them"
            )
            continue
        for image in channels:
            by_end[case][_name(image, case)].append(image.path)
            used.add(image.path)
    sessions = {_subject(parse(path)) for path in used}
    lonely = [image.path for image in images if image.path not in used and _subject(image) not in sessions]
    problems += [f"{path}: has no label map; add one, or move the image out of the folder" for path in lonely]
    if not label_of:
        return Layout("BIDS", folder, (), (), tuple(problems))
    found, ends, more = complete_cases(by_end, label_of)
    cases = (replace(case, patient=f"sub-{parse(case.label).entities['sub']}") for case in found)
    return Layout("BIDS", folder, ends, tuple(cases), (*problems, *more))


def _subject(file: BidsFile) -> tuple[str, str | None]:
    return file.entities["sub"], file.entities.get("ses")


def _is_shared(key: str, files: Sequence[BidsFile]) -> bool:
    return all(file.entities.get(key) == files[0].entities.get(key) for file in files)


def _name(image: BidsFile, case: str) -> str:
    return stem_of(image.path).removeprefix(case).strip("_")


def _images_of(label: BidsFile, images: Sequence[BidsFile]) -> list[BidsFile]:
    """Return the images of a label map among those of its subject and session.

    An image whose whole name begins that of the label map comes first (`sub-1_T2w_seg`), then images beside the label
    map, then the others. Further entities of an image must be those of the label map.
    """
    named = [image for image in images if stem_of(label.path).startswith(stem_of(image.path) + "_")]
    if named:
        return [max(named, key=lambda image: len(stem_of(image.path)))]
    fitting = [image for image in images if image.entities.items() <= label.entities.items()]
    beside = [image for image in fitting if image.path.parent == label.path.parent]
    candidates = beside or fitting
    if len(candidates) < 2:
        return candidates
    grid = read_channel_grid(label.path)[0]
    on_grid = [image for image in candidates if not read_channel_grid(image.path)[0].difference(grid)]
    if not on_grid:
        raise VolumeError(
            f"{label.path}: none of its images ({names_of([image.path for image in candidates])}) is on its grid; "
            "resample the label map"
        )
    return on_grid
