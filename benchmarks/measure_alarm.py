"""Measure how many bad segmentations are called suspicious, and how many good ones.

The hippocampus bundle predicts the cases of a fold as they are and spoiled. A result is bad if its Dice (mean of the
labels) is below 0.7; a scan that is refused counts as an alarm. False alarms are counted among the cases as they are:
half a structure or a wrong voxel size deserves an alarm whatever the Dice. The shipped weights were trained on these
cases as well, which makes the good results better than on new ones, and hardly matters for the spoiled ones.

With --heads, the bundle for whole heads predicts these scans, unchanged and spoiled, and the bundle of crops predicts
the unchanged ones. A head has no reference here: a result is bad if its Dice with the result for the unchanged head is
below 0.7.

    python benchmarks/measure_alarm.py --data DATA/hippocampus [--fold 1] [--every 1]
    python benchmarks/measure_alarm.py --heads DATA/brain_t1/*.mgz ...
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

import medseg
from medseg.datasets import case_files, read_manifest
from medseg.errors import MedsegError
from medseg.volumes import read_label_map, read_volume

BUNDLES = Path(__file__).parents[1] / "bundles"
BUNDLE, BUNDLE_OF_HEADS = BUNDLES / "hippocampus_unet3d_segmentation", BUNDLES / "brain_t1_hippocampi_segmentation"
BAD_DICE = 0.7
Scan = tuple[np.ndarray, np.ndarray]
Spoil = Callable[[np.ndarray, np.ndarray, np.random.Generator], Scan]


def noisy(factor: float) -> Spoil:
    return lambda a, affine, rng: (a + rng.normal(0, factor * a.std(), a.shape).astype(np.float32), affine)


def blurred(sigma: float) -> Spoil:
    return lambda a, affine, rng: (ndimage.gaussian_filter(a, sigma), affine)


def respaced(factor: float) -> Spoil:
    return lambda a, affine, rng: (a, affine @ np.diag([factor, factor, factor, 1.0]))


def cut(axis: int) -> Spoil:
    """Remove one half of the field of view; the reference is cut alike."""

    def halve(a: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Scan:
        part = [slice(None)] * 3
        part[axis] = slice(0, a.shape[axis] // 2)
        return a[tuple(part)], affine

    return halve


def flipped(axis: int) -> Spoil:
    return lambda a, affine, rng: (np.flip(a, axis).copy(), affine)


SPOILERS: dict[str, Spoil] = {
    "as it is": lambda a, affine, rng: (a, affine),
    "noise of half the standard deviation": noisy(0.5),
    "noise of 1 standard deviation": noisy(1),
    "noise of 2 standard deviations": noisy(2),
    "blur, σ 1 mm": blurred(1),
    "blur, σ 2 mm": blurred(2),
    "blur, σ 4 mm": blurred(4),
    "contrast inverted": lambda a, affine, rng: (a.max() - a, affine),
    "contrast folded (another modality)": lambda a, affine, rng: (np.abs(a - np.median(a)), affine),
    "mirrored left to right": flipped(0),
    "mirrored front to back": flipped(1),
    "upside down": flipped(2),
    "voxel size in the header × 1.5": respaced(1.5),
    "voxel size in the header × 0.67": respaced(1 / 1.5),
    "left half only": cut(0),
    "posterior half only": cut(1),
    "lower half only": cut(2),
    "noise only": lambda a, affine, rng: (rng.normal(size=a.shape).astype(np.float32), affine),
    "empty": lambda a, affine, rng: (np.zeros_like(a), affine),
}


def mean_dice(found: np.ndarray, reference: np.ndarray, labels: Sequence[int] = (1, 2)) -> float:
    scores = []
    for label in labels:
        a, b = found == label, reference == label
        scores.append(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))
    return float(np.mean(scores))


def is_exact(name: str) -> bool:
    """Return True if the reference is changed like the scan: halves are cut, flipped scans show flipped structures."""
    return name.endswith(("only", "right", "back", "down")) and name != "noise only"


def main() -> None:
    """Print one row per way of spoiling, and sensitivity and false alarms of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of crops")
    parser.add_argument("--heads", type=Path, nargs="+", help="whole heads")
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="spoil every n-th case only")
    arguments = parser.parse_args()
    if arguments.heads:
        measure_heads(arguments.heads)
    if arguments.data:
        measure_crops(arguments)


def measure_heads(files: Sequence[Path]) -> None:
    """Print one row per way of spoiling whole heads; a scan that is refused counts as an alarm."""
    model, crops = (medseg.load(b, device="cpu", precision="fp32") for b in (BUNDLE_OF_HEADS, BUNDLE))
    rng = np.random.default_rng(0)
    heads = [read_volume(file) for file in files]
    unchanged = [np.asarray(model.predict((np.asarray(h.array, np.float32), h.grid.affine)).array) for h in heads]
    labels = sorted(value for value in model.plan.labels.values() if value)
    found_bad, all_bad = 0, 0
    print(
        "| heads | refused | suspicious | Dice with the unchanged head | bad | alarms among bad |\n" + "|---" * 6 + "|"
    )
    for name, spoil in {**SPOILERS, "into the bundle of crops": None}.items():
        dice, refused, suspicious = [], [], []
        for head, expected in zip(heads, unchanged, strict=True):
            # the canonical axes, so that "left" and "lower" mean the same in every head
            turned = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(head.array, np.float32), head.grid.affine))
            reference = nib.as_closest_canonical(nib.Nifti1Image(expected, head.grid.affine))
            given = np.asarray(turned.dataobj), turned.affine
            array, affine = given if spoil is None else spoil(*given, rng)
            wanted = np.asarray(reference.dataobj)
            if is_exact(name) and spoil is not None:
                wanted = np.asarray(spoil(wanted, affine, rng)[0])
            try:
                result = (crops if spoil is None else model).predict((array, affine))
            except MedsegError:
                dice.append(0.0)
                refused.append(True)
                suspicious.append(False)
                continue
            dice.append(mean_dice(np.asarray(result.array), wanted, labels))
            refused.append(False)
            suspicious.append(bool(result.suspicions))
        bad, alarm = np.array(dice) < BAD_DICE, np.array(refused) | np.array(suspicious)
        found_bad, all_bad = found_bad + int((bad & alarm).sum()), all_bad + int(bad.sum())
        shown = ", ".join("–" if out else f"{d:.2f}" for d, out in zip(dice, refused, strict=True))
        print(
            f"| {name} | {sum(refused)} of {len(heads)} | {sum(suspicious)} | {shown} | {bad.sum()} | "
            f"{(bad & alarm).sum()} |",
            flush=True,
        )
    print(f"\nsensitivity {found_bad / max(all_bad, 1):.3f} ({found_bad} of {all_bad})")


def measure_crops(arguments: argparse.Namespace) -> None:
    """Print the table of the crops of one fold."""
    model = medseg.load(BUNDLE, device="cpu", precision="fp32")
    cases = case_files(read_manifest("hippocampus"), arguments.data, arguments.fold, "validation", missing="skip")
    rng = np.random.default_rng(0)
    found_bad, all_bad, false_alarms = 0, 0, ""
    print("| scan | cases | Dice, median | bad | alarms among bad | alarms among good |\n" + "|---" * 6 + "|")
    for name, spoil in SPOILERS.items():
        dice, alarms = [], []
        for case in cases if name == "as it is" else cases[:: arguments.every]:
            image, label = read_volume(Path(case["image"])), read_label_map(case["label"])
            affine = image.grid.affine
            array, changed = spoil(np.asarray(image.array, dtype=np.float32), affine, rng)
            reference = np.asarray(label.array)
            if is_exact(name):
                reference = np.asarray(spoil(reference, affine, rng)[0])
            try:
                result = model.predict((array, changed))
            except MedsegError:
                dice.append(0.0)
                alarms.append(True)
                continue
            dice.append(mean_dice(result.array, reference))
            alarms.append(bool(result.suspicions))
        bad, alarm = np.array(dice) < BAD_DICE, np.array(alarms)
        found_bad, all_bad = found_bad + int((bad & alarm).sum()), all_bad + int(bad.sum())
        false_alarms = false_alarms or f"{(~bad & alarm).sum()} of {(~bad).sum()}"
        print(
            f"| {name} | {len(dice)} | {np.median(dice):.2f} | {bad.sum()} | {(bad & alarm).sum()} | "
            f"{(~bad & alarm).sum()} of {(~bad).sum()} |",
            flush=True,
        )
    print(f"\nsensitivity {found_bad / max(all_bad, 1):.3f} ({found_bad} of {all_bad}), false alarms {false_alarms}")


if __name__ == "__main__":
    main()
