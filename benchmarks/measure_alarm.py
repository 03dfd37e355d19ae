"""Measure how many bad segmentations are called suspicious, and how many good ones.

The hippocampus bundle predicts the cases of a fold as they are and spoiled. A result is bad if its Dice (mean of the
labels) is below 0.7; a scan that is refused counts as an alarm. False alarms are counted among the cases as they are:
half a structure or a wrong voxel size deserves an alarm whatever the Dice. The shipped weights were trained on these
cases as well, which makes the good results better than on new ones, and hardly matters for the spoiled ones.

    python benchmarks/measure_alarm.py --data DATA/hippocampus [--fold 1] [--every 1]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

import medseg
from medseg.datasets import case_files, read_manifest
from medseg.errors import MedsegError
from medseg.volumes import read_label_map, read_volume

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_unet3d_segmentation"
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


def mean_dice(found: np.ndarray, reference: np.ndarray) -> float:
    scores = []
    for label in (1, 2):
        a, b = found == label, reference == label
        scores.append(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))
    return float(np.mean(scores))


def main() -> None:
    """Print one row per way of spoiling, and sensitivity and false alarms of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="spoil every n-th case only")
    arguments = parser.parse_args()
    model = medseg.load(BUNDLE, device="cpu")
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
            # the same change of the reference: halves are cut, flipped scans show flipped structures
            exact = name.endswith(("only", "right", "back", "down")) and name != "noise only"
            reference = np.asarray(label.array)
            if exact:
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
