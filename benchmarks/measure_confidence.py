"""Measure the calibrated confidence of weights on the fold that their training left out.

The cases of the fold are split into halves by patient, many times. Temperature, thresholds of the intervals and offsets
of the Dice are fitted on one half and measured on the other: expected calibration error before and after, the share of
cases whose interval holds the reference's volume, the width of the intervals, and the rank correlation of predicted and
true Dice. Two simpler intervals stand beside ours: the volumes at probabilities of 0.75 and 0.25 without calibration,
and a factor around the labelled volume that is fitted on the same half.

    python benchmarks/measure_confidence.py BUNDLE --weights RUN/model.pt --data DATA/hippocampus [--splits 50]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage, stats

import medseg
from medseg.bundle.calibrate import (
    MAX_VOXELS,
    NEAR_MM,
    CaseCounts,
    CaseVoxels,
    expected_error,
    fit_dice,
    fit_temperature,
    fit_thresholds,
    reference_channels,
)
from medseg.bundle.fingerprint import training_manifest
from medseg.bundle.folder import BundleFolder
from medseg.datasets import case_files, read_manifest
from medseg.inference import Predictor
from medseg.inference.confidence import LEVEL, Calibration, VolumeCounts
from medseg.volumes import read_volume

Spoil = Callable[[np.ndarray, np.random.Generator], np.ndarray]
SPOILERS: dict[str, Spoil] = {
    "noise 1": lambda a, rng: a + rng.normal(0, a.std(), a.shape).astype(np.float32),
    "noise 2": lambda a, rng: a + rng.normal(0, 2 * a.std(), a.shape).astype(np.float32),
    "blur 1": lambda a, rng: ndimage.gaussian_filter(a, 1),
    "blur 2": lambda a, rng: ndimage.gaussian_filter(a, 2),
    "folded": lambda a, rng: np.abs(a - np.median(a)),
}


@dataclass(frozen=True)
class Case:
    """One predicted case: logarithms of the probabilities (C, n) and channels of the reference, near the structures."""

    name: str
    patient: str
    logits: torch.Tensor
    reference: np.ndarray
    near: np.ndarray

    @property
    def voxels(self) -> CaseVoxels:
        index = np.flatnonzero(self.near)
        index = index[:: max(1, -(-len(index) // MAX_VOXELS))]
        return CaseVoxels(self.logits[:, index].numpy(), self.reference[index])

    def counts(self, temperature: float, names: Sequence[str]) -> CaseCounts:
        counts = VolumeCounts(names, temperature)
        counts.observe(self.logits, (), ())
        winner = self.logits.argmax(0).numpy()
        sizes, dice = {}, {}
        for channel, name in enumerate(names[1:], 1):
            found, wanted = winner == channel, self.reference == channel
            sizes[name] = int(wanted.sum())
            dice[name] = 2 * int((found & wanted).sum()) / max(int(found.sum()) + sizes[name], 1)
        return CaseCounts(counts, sizes, dice)


def predicted(model: Predictor, case: dict, patient: str, manifest, spoil: Spoil | None = None) -> Case:
    """Predict a case, as it is or spoiled."""
    volume = read_volume(Path(case["image"]))
    array = np.asarray(volume.array, dtype=np.float32)
    given = array if spoil is None else spoil(array, np.random.default_rng(0))
    seg = model.predict((given, volume.grid.affine))
    reference, _ = reference_channels(case, manifest, model.plan)
    maps = np.stack([seg.probabilities[name] for name in model.plan.label_names]).astype(np.float32)
    distance = ndimage.distance_transform_edt((reference == 0) & (seg.array == 0), sampling=volume.grid.spacing)
    logits = torch.from_numpy(np.log(np.maximum(maps, 1e-7)).reshape(len(maps), -1))
    return Case(case["case"], patient, logits, reference.ravel(), (distance <= NEAR_MM).ravel())


def halves(cases: Sequence[Case], rng: np.random.Generator) -> tuple[list[Case], list[Case]]:
    """Split cases by patient."""
    patients = sorted({case.patient for case in cases})
    first = set(rng.permutation(patients)[: len(patients) // 2])
    return [c for c in cases if c.patient in first], [c for c in cases if c.patient not in first]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--spoil_every", type=int, default=2, help="spoil every n-th case")
    arguments = parser.parse_args()
    manifest = read_manifest(training_manifest(BundleFolder(arguments.bundle)))
    model = medseg.load(
        arguments.bundle, arguments.weights, device="cpu", backend="torch", precision="fp32", save_probabilities=True
    )
    model.calibration = model.fingerprint = None
    names = model.plan.label_names
    patient_of = {case.id: case.patient for case in manifest.cases}
    files = case_files(manifest, arguments.data, arguments.fold, "validation", missing="skip")
    cases = [predicted(model, case, patient_of[case["case"]], manifest) for case in files]
    print(f"{len(cases)} cases of {len({c.patient for c in cases})} patients", flush=True)

    rng = np.random.default_rng(0)
    temperatures, errors, correlations = [], [], {name: [] for name in names[1:]}
    covered = {kind: {name: [] for name in names[1:]} for kind in ("ours", "0.75 and 0.25", "factor")}
    widths = {kind: {name: [] for name in names[1:]} for kind in covered}
    biases = {name: [] for name in names[1:]}
    for _ in range(arguments.splits):
        fitted, measured = halves(cases, rng)
        voxels = [case.voxels for case in fitted]
        temperature = fit_temperature(voxels)
        temperatures.append(temperature)
        held = [case.voxels for case in measured]
        errors.append([expected_error(held, t) for t in (1.0, temperature)])
        counts = [case.counts(temperature, names) for case in fitted]
        calibration = Calibration("", temperature, fit_thresholds(counts), fit_dice(counts))
        plain = Calibration("", 1.0, {name: [np.log(3), -np.log(3)] for name in names[1:]})
        factors = {
            name: np.quantile(
                [np.log(c.reference[name] / c.counts.num_labelled[names.index(name)]) for c in counts],
                [(1 - LEVEL) / 2, (1 + LEVEL) / 2],
                method="weibull",
            )
            for name in names[1:]
        }
        tested = [case.counts(temperature, names) for case in measured]
        tested_plain = [case.counts(1.0, names) for case in measured]
        for name in names[1:]:
            labelled = [c.counts.num_labelled[names.index(name)] for c in tested]
            intervals = {
                "ours": [c.counts.intervals_ml(calibration, 1000.0)[name] for c in tested],
                "0.75 and 0.25": [c.counts.intervals_ml(plain, 1000.0)[name] for c in tested_plain],
                "factor": [list(n * np.exp(factors[name])) for n in labelled],
            }
            truth = [c.reference[name] for c in tested]
            for kind, found in intervals.items():
                covered[kind][name].append(np.mean([a <= t <= b for (a, b), t in zip(found, truth, strict=True)]))
                widths[kind][name].append(np.median([(b - a) / n for (a, b), n in zip(found, labelled, strict=True)]))
            expected = [c.counts.predicted_dice(calibration)[name] for c in tested]
            true = [c.dice[name] for c in tested]
            correlations[name].append(stats.spearmanr(expected, true).statistic)
            biases[name].append(np.mean(np.subtract(expected, true)))
    before, after = np.mean(errors, axis=0)
    print(f"temperature {np.mean(temperatures):.3f} ({np.min(temperatures):.3f} to {np.max(temperatures):.3f})")
    print(f"ECE before {before:.4f}, after {after:.4f}, mean over {arguments.splits} splits")
    print("\n| interval | structure | coverage, mean over the splits | median width |\n|---|---|---|---|")
    for kind, by_name in covered.items():
        for name, found in by_name.items():
            print(
                f"| {kind} | {name} | {np.mean(found):.1%} ({np.min(found):.0%} to {np.max(found):.0%}) | "
                f"{np.mean(widths[kind][name]):.1%} |"
            )
    for name in names[1:]:
        print(
            f"predicted Dice of {name}, unspoiled cases: rank correlation {np.mean(correlations[name]):.2f}, "
            f"mean error {np.mean(biases[name]):+.3f}",
            flush=True,
        )

    temperature = fit_temperature([case.voxels for case in cases])
    counts = [case.counts(temperature, names) for case in cases]
    calibration = Calibration("", temperature, fit_thresholds(counts), fit_dice(counts))
    chosen = files[:: arguments.spoil_every]
    rows = {"as they are": counts[:: arguments.spoil_every]}
    for title, spoil in SPOILERS.items():
        rows[title] = [
            predicted(model, case, patient_of[case["case"]], manifest, spoil).counts(temperature, names)
            for case in chosen
        ]
    print("\n| scans | " + " | ".join(f"{n}: predicted, true Dice | coverage" for n in names[1:]) + " |")
    print("|---" * (1 + 2 * (len(names) - 1)) + "|")
    for title, found in rows.items():
        cells = []
        for name in names[1:]:
            expected = [c.counts.predicted_dice(calibration)[name] or 0.0 for c in found]
            inside = [
                a <= c.reference[name] <= b
                for c in found
                for a, b in [c.counts.intervals_ml(calibration, 1000.0)[name]]
            ]
            cells.append(
                f"{np.mean(expected):.2f}, {np.mean([c.dice[name] for c in found]):.2f} | {np.mean(inside):.0%}"
            )
        print(f"| {title} | " + " | ".join(cells) + " |")
    for name in names[1:]:
        expected = [c.counts.predicted_dice(calibration)[name] or 0.0 for found in rows.values() for c in found]
        true = [c.dice[name] for found in rows.values() for c in found]
        rho, error = stats.spearmanr(expected, true).statistic, np.mean(np.abs(np.subtract(expected, true)))
        print(f"{name}: rank correlation with spoiled cases {rho:.2f}, mean absolute error {error:.3f}")


if __name__ == "__main__":
    main()
