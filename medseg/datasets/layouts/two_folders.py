"""Read a folder of images beside a folder of label maps, divided into train, val and test or not."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from medseg.datasets.layouts.folder_layout import CaseFiles, Layout, folders_in, images_in, names_of
from medseg.datasets.layouts.pairing import IMAGE_WORD, LABEL_WORD, is_label_name, pair
from medseg.errors import ManifestError

KIND = "images and labels in two folders"
_PARTS = "tr|ts|va|train(?:ing)?|val(?:idation)?|valid|test(?:ing)?|class"
_LABEL_FOLDER = re.compile(
    rf"(?:.*[_\-. ]|{_PARTS})?(?:{LABEL_WORD})(?:{_PARTS}|[_\-. \d].*)?|segmentationclass", re.IGNORECASE
)
_IMAGE_FOLDER = re.compile(
    rf"(?:.*[_\-. ]|{_PARTS}|jpeg)?(?:{IMAGE_WORD})(?:{_PARTS}|[_\-. \d].*)?|{_PARTS}", re.IGNORECASE
)
_WORDS = re.compile(rf"jpeg|class|{LABEL_WORD}|{IMAGE_WORD}", re.IGNORECASE)
_PART_OF = {
    "tr": "training", "train": "training", "training": "training",
    "va": "validation", "val": "validation", "valid": "validation", "validation": "validation",
    "ts": "test", "test": "test", "testing": "test",
}  # fmt: skip


def find(folder: Path) -> Layout | None:
    """Return the layout of a folder, or None if it has no folder of label maps.

    Raises:
        ManifestError: several folders could hold the label maps or the images.
    """
    holding = [path for path in _folders(folder) if images_in(path)]
    labels = [path for path in holding if is_of_labels(path.relative_to(folder))]
    images = [path for path in holding if path not in labels and is_of_images(path.relative_to(folder))]
    if not labels or not images:
        return _one_folder(folder)
    by_part = {"label": _by_part(labels, folder, "label maps"), "image": _by_part(images, folder, "images")}
    shared = [part for part in by_part["label"] if part in by_part["image"]]
    if len(labels) == len(images) == 1 and not shared:
        pairs = {"": (images[0], labels[0])}
    else:
        pairs = {part: (by_part["image"][part], by_part["label"][part]) for part in shared}
    if not pairs:
        raise ManifestError(
            f"{folder}: the folders of images ({names_of(images)}) and of label maps ({names_of(labels)}) have "
            "different names; name them alike, as in images and labels"
        )
    left_out = [
        path for part, path in by_part["label"].items() if len(pairs) > 0 and path not in {b for _, b in pairs.values()}
    ]
    problems = [
        f"{path}: a folder of label maps without a folder of images; add it, or move the folder" for path in left_out
    ]
    cases: list[CaseFiles] = []
    splits: dict[str, list[str]] = defaultdict(list)
    all_ends: set[tuple[str, ...]] = set()
    folder_of: dict[str, Path] = {}
    for part, (image_folder, label_folder) in pairs.items():
        found, ends, more = pair(images_in(image_folder), images_in(label_folder))
        problems += more
        all_ends.add(ends)
        for case in found:
            first = folder_of.setdefault(case.id, label_folder)
            if first != label_folder:
                problems.append(f"{case.label}: the case {case.id!r} is in {first} as well; rename or remove one")
                continue
            cases.append(case)
            splits[_PART_OF.get(part, part)].append(case.id)
    if len(all_ends) > 1:
        raise ManifestError(f"{folder}: its folders have images of different channels; found {sorted(all_ends)}")
    is_split = len(pairs) > 1 and set(splits) <= set(_PART_OF.values())
    return Layout(
        KIND,
        folder,
        all_ends.pop(),
        tuple(sorted(cases, key=lambda case: case.id)),
        tuple(problems),
        {part: tuple(sorted(ids)) for part, ids in splits.items()} if is_split else {},
    )


def _folders(folder: Path) -> list[Path]:
    return [path for child in folders_in(folder) for path in (child, *folders_in(child))]


def is_of_labels(path: Path) -> bool:
    """Return whether a part of a path is the name of a folder of label maps."""
    return any(_LABEL_FOLDER.fullmatch(part) for part in path.parts)


def is_of_images(path: Path) -> bool:
    """Return whether a part of a path is the name of a folder of images, or of a part of the data set."""
    return any(_IMAGE_FOLDER.fullmatch(part) for part in path.parts)


def _by_part(folders: list[Path], root: Path, content: str) -> dict[str, Path]:
    """Return the folders by the part of their name that is not a word for images or labels, such as "train"."""
    named: dict[str, Path] = {}
    for folder in folders:
        rest = " ".join(_WORDS.sub("", part).strip("_-. ").lower() for part in folder.relative_to(root).parts)
        first = named.setdefault(rest.strip(), folder)
        if first != folder:
            raise ManifestError(
                f"{root}: both {first.relative_to(root)} and {folder.relative_to(root)} could hold the {content}; move "
                "one of them to another place, or write a manifest"
            )
    return named


def _one_folder(folder: Path) -> Layout | None:
    """Return the layout of a folder with images and label maps side by side, such as `a.png` and `a_mask.png`."""
    files = images_in(folder)
    labels = [file for file in files if is_label_name(file)]
    images = [file for file in files if file not in labels]
    if not labels or not images:
        return None
    cases, ends, problems = pair(images, labels)
    return Layout("images and label maps in one folder", folder, ends, tuple(cases), tuple(problems))
