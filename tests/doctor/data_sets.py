"""Small data sets in nnU-Net's layout, and one way to spoil each of them per rule."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from medseg.datasets import Manifest

SHAPE = (16, 18, 14)
LABELS = {"background": 0, "liver": 1, "tumour": 2}


def names(count: int = 8) -> list[str]:
    """Return case names that look like those of different patients."""
    return [f"scan_{number:03d}" for number in range(1, count + 1)]


def write_data_set(
    folder: Path,
    cases: Sequence[str] = tuple(names()),
    *,
    channels: Sequence[str] = ("mri",),
    labels: dict[str, int] | None = None,
    seed: int = 0,
) -> Path:
    """Write a data set without a problem: smooth random images, and two boxes of label near their middle."""
    rng = np.random.default_rng(seed)
    content = {
        "name": folder.name,
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": labels or LABELS,
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    for position, case in enumerate(cases):
        label = np.zeros(SHAPE, dtype=np.uint8)
        start = np.array([3 + position % 3, 3 + position // 3 % 3, 3 + position // 9])
        label[tuple(slice(s, s + 6) for s in start)] = 1
        label[start[0] + 2 : start[0] + 5, start[1] + 2 : start[1] + 5, start[2] + 2 : start[2] + 5] = 2
        save(label_file(folder, case), label)
        for number, channel in enumerate(channels):
            image = ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 1.5)
            image = 100 + 20 * image / image.std() + 20 * (label > 0) - 150 * (channel == "CT")
            save(image_file(folder, case, number), image.astype(np.float32))
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


class KillingManifest(Manifest):
    """A manifest that kills the process of a worker at one case, as the system does if memory runs out."""

    def paths(self, root: Path | str, case_id: str) -> dict[str, list[Path]]:
        """Return the files of a case, unless it is scan_003 in a worker process."""
        if case_id == "scan_003" and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().paths(root, case_id)


def image_file(folder: Path, case: str, channel: int = 0) -> Path:
    """Return the path of an image."""
    return folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz"


def label_file(folder: Path, case: str) -> Path:
    """Return the path of a label map."""
    return folder / "labelsTr" / f"{case}.nii.gz"


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    """Write a NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine), path)


def change(path: Path, change_array: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the voxels of a file by a function of them."""
    image = nib.load(path)
    save(path, change_array(np.asarray(image.dataobj)), image.affine)


def move(path: Path, affine: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the affine of a file by a function of it."""
    image = nib.load(path)
    save(path, np.asarray(image.dataobj), affine(image.affine))


@dataclass(frozen=True)
class Spoilt:
    """One problem made on purpose.

    Args:
        rule: the rule that finds it.
        spoil: makes the problem in the folder of a data set.
        case: the case that the line names; empty for the data set as a whole.
        found: text of the value that the line gives.
        advice: text of what to do.
        channels: channels of the data set.
        cases: its cases.
    """

    rule: str
    spoil: Callable[[Path], object]
    case: str
    found: str
    advice: str
    channels: tuple[str, ...] = ("mri",)
    cases: tuple[str, ...] = tuple(names())


def _set(index: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change_array(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[index] = value
        return array

    return change_array


def _resample(folder: Path, case: str, factor: float) -> None:
    for path in (image_file(folder, case), label_file(folder, case)):
        move(path, lambda affine: np.diag([factor, factor, factor, 1.0]) @ affine)


def _enlarge(folder: Path, case: str) -> None:
    change(image_file(folder, case), lambda array: np.pad(array, [(n, n) for n in SHAPE], mode="symmetric"))
    change(label_file(folder, case), lambda array: np.pad(array, [(n, n) for n in SHAPE]))


def _mirror(folder: Path) -> None:
    image = nib.load(image_file(folder, "scan_002"))
    array = np.asarray(image.dataobj)[::-1] * np.float32(3)
    save(image_file(folder, "scan_005"), array, image.affine)


def _reorient(folder: Path, case: str, files: Sequence[Path]) -> None:
    for path in files:
        image = nib.load(path)
        turned = image.as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
        save(path, np.asarray(turned.dataobj), turned.affine)


def _blend(folder: Path, cases: Sequence[str]) -> None:
    """Make each image a mixture of itself and the three before it, as slices of a volume are."""
    arrays = [np.asarray(nib.load(image_file(folder, case)).dataobj) for case in cases]
    for number, case in enumerate(cases):
        save(image_file(folder, case), np.mean(arrays[max(number - 3, 0) : number + 1], axis=0))


def _splits(folder: Path, training: list[str], validation: list[str]) -> None:
    (folder / "splits_final.json").write_text(json.dumps([{"train": training, "val": validation}]), encoding="utf-8")


def _only_few_tumours(folder: Path) -> None:
    for case in names()[1:]:
        change(label_file(folder, case), lambda a: np.minimum(a, 1))


def _drop_every_label(folder: Path) -> None:
    for case in names()[1:]:
        label_file(folder, case).unlink()


SPOILT = [
    Spoilt("missing-file", lambda f: image_file(f, "scan_003").unlink(), "scan_003", "no such file", "add the file"),
    Spoilt(
        "unlisted-file", lambda f: shutil.copy(image_file(f, "scan_001"), f / "imagesTr" / "scan_099_0000.nii.gz"),
        "imagesTr/scan_099_0000.nii.gz", "no case uses", "add its counterpart",
    ),
    Spoilt(
        "dimensions", lambda f: save(image_file(f, "scan_004"), np.zeros((*SHAPE, 3), np.float32)), "scan_004",
        "(16, 18, 14, 3)", "one file per channel or time point",
    ),
    Spoilt(
        "unreadable", lambda f: image_file(f, "scan_002").write_bytes(image_file(f, "scan_002").read_bytes()[:600]),
        "scan_002", "truncated", "copy or export the image again",
    ),
    Spoilt(
        "unreadable", lambda f: label_file(f, "scan_002").write_bytes(b""), "scan_002", "0 bytes",
        "copy or export the image again",
    ),
    Spoilt(
        "non-finite", lambda f: change(image_file(f, "scan_006"), _set((3, 4, 5), np.nan)), "scan_006",
        "1 voxel, such as (3, 4, 5)", "--fill-non-finite",
    ),
    Spoilt(
        "constant", lambda f: change(image_file(f, "scan_001"), lambda a: np.full_like(a, 7)), "scan_001",
        "7 in every voxel", "export the image again",
    ),
    Spoilt(
        "fractional-label", lambda f: change(label_file(f, "scan_001"), lambda a: a.astype(np.float32) * 0.5),
        "scan_001", "0.5", "nearest neighbours",
    ),
    Spoilt(
        "float-label", lambda f: change(label_file(f, "scan_007"), lambda a: a.astype(np.float64)), "scan_007",
        "float64", "--fix DIR",
    ),
    Spoilt(
        "label-values", lambda f: change(label_file(f, "scan_003"), _set((1, 1, slice(1, 4)), 9)), "scan_003",
        "9 (3 voxels)", "--relabel 9=0",
    ),
    Spoilt(
        "empty-label", lambda f: change(label_file(f, "scan_003"), np.zeros_like), "scan_003",
        "background in every voxel", "check that the annotation was saved",
    ),
    Spoilt(
        "grid", lambda f: move(label_file(f, "scan_003"), lambda a: a + np.array([[0, 0, 0, 5.0]] + [[0] * 4] * 3)),
        "scan_003", "corners up to 5 mm from those of imagesTr/scan_003_0000.nii.gz", "resample the label map",
    ),
    Spoilt(
        "grid", lambda f: change(label_file(f, "scan_003"), lambda a: a[:-1]), "scan_003", "shape (15, 18, 14)",
        "resample the label map",
    ),
    Spoilt(
        "axis-order", lambda f: _reorient(f, "scan_005", [label_file(f, "scan_005")]), "scan_005", "LPS", "--fix DIR",
    ),
    Spoilt(
        "header-rounding",
        lambda f: move(label_file(f, "scan_003"), lambda a: a + np.array([[0, 0, 0, 0.2]] + [[0] * 4] * 3)),
        "scan_003", "up to 0.2 mm", "--fix DIR",
    ),
    Spoilt("few-cases", lambda f: None, "data set", "2 cases", "add cases", cases=tuple(names(2))),
    Spoilt("few-cases", lambda f: None, "data set", "1 case", "nothing is left to validate on", cases=("scan_001",)),
    Spoilt(
        "orientation",
        lambda f: _reorient(f, "scan_005", [image_file(f, "scan_005"), label_file(f, "scan_005")]),
        "scan_005", "RAS in 7, LPS in 1", "left and right",
    ),
    Spoilt(
        "spacing", lambda f: _resample(f, "scan_004", 0.001), "scan_004", "0.001 × 0.001 × 0.002 mm",
        "written in m; correct its spacing to mm",
    ),
    Spoilt(
        "extent", lambda f: _enlarge(f, "scan_004"), "scan_004", "48 × 54 × 84 mm, 3 times the usual size",
        "its spacing is right",
    ),
    Spoilt(
        "intensity", lambda f: change(image_file(f, "scan_008"), lambda a: a * 1000), "scan_008", "a median of",
        "check the modality",
    ),
    Spoilt(
        "intensity", lambda f: change(image_file(f, "scan_008"), lambda a: a + 1024), "scan_008", "HU",
        "check the rescaling", channels=("CT",),
    ),
    Spoilt(
        "ct-units", lambda f: change(image_file(f, "scan_002"), lambda a: a - a.min()), "scan_002", "values from 0 to",
        "-1024", channels=("CT",),
    ),
    Spoilt(
        "absent-structure",
        lambda f: [change(label_file(f, case), lambda a: np.minimum(a, 1)) for case in names()],
        "data set", "no voxel of tumour in 8 label maps", "correct its value in the manifest",
    ),
    Spoilt("rare-structure", _only_few_tumours, "scan_001", "tumour in 1 of 8 cases (12 %)", "spread these cases"),
    Spoilt(
        "missing-structure", lambda f: change(label_file(f, "scan_010"), lambda a: np.minimum(a, 1)), "scan_010",
        "no voxel of tumour", "complete the label map", cases=tuple(names(10)),
    ),
    Spoilt(
        "structure-size", lambda f: change(label_file(f, "scan_004"), lambda a: np.where(a == 0, 1, a)), "scan_004",
        "ml of liver", "check the label map",
    ),
    Spoilt(
        "tiny-piece", lambda f: change(label_file(f, "scan_006"), _set((0, 0, 0), 1)), "scan_006",
        "2 pieces of liver, the smallest of 1 voxel at (0, 0, 0)", "erase the speck",
    ),
    Spoilt(
        "duplicate-image", lambda f: shutil.copy(image_file(f, "scan_002"), image_file(f, "scan_005")),
        "scan_002, scan_005", "the same voxels in 2 cases", "keep one of them",
    ),
    Spoilt(
        "near-duplicate", _mirror, "scan_002, scan_005", "after mirroring x", "keep one of them",
    ),
    Spoilt(
        "duplicate-label", lambda f: shutil.copy(label_file(f, "scan_002"), label_file(f, "scan_005")),
        "scan_002, scan_005", "one label map in 2 cases", "restore the others",
    ),
    Spoilt(
        "same-channel", lambda f: shutil.copy(image_file(f, "scan_002"), image_file(f, "scan_002", 1)), "scan_002",
        "the voxels of t1 in t2", "export the channel again", channels=("t1", "t2"),
    ),
    Spoilt(
        "same-patient", lambda f: None, "head_01_left, head_01_right", "their names share head_01", "one patient",
        cases=("head_01_left", "head_01_right", "head_02_left", "head_03_left", "head_04_left"),
    ),
    Spoilt(
        "slices", lambda f: _blend(f, names(16)), "scan_001, scan_002, scan_003 and 13 more", "neighbours correlate by",
        "one patient", cases=tuple(names(16)),
    ),
    Spoilt(
        "leak",
        lambda f: (
            shutil.copy(image_file(f, "scan_002"), image_file(f, "scan_005")),
            _splits(f, ["scan_001", "scan_002"], ["scan_003", "scan_005"]),
        ),
        "scan_002, scan_005", "1 image in several folds", "group the folds",
    ),
    Spoilt(
        "test-leak",
        # another type, so that the bytes differ and the values do not
        lambda f: save(
            f / "imagesTs" / "new_01_0000.nii.gz",
            np.asarray(nib.load(image_file(f, "scan_002")).dataobj, dtype=np.float64),
        ),
        "scan_002", "imagesTs/new_01", "test set",
    ),
]  # fmt: skip
