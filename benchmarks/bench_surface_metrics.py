"""Measure the surface metrics of a case with many classes: `score_case` against MONAI's two metrics.

    python benchmarks/bench_surface_metrics.py [--size 256] [--classes 14] [--repeats 5] [--spacing 1 1 1]

The label maps hold overlapping ellipsoids in size³ voxels. The prediction is moved by 1.3 voxels, and one of its
classes has a false positive far away. MONAI (HausdorffDistanceMetric, SurfaceDiceMetric) computes HD95 and NSD from
prepared one-hot tensors; medseg computes Dice, NSD, HD95, ASSD, volumes, precision and recall from label maps. Both
must agree on the NSD. Times are medians of interleaved repeats. `--memory` runs each contender once in a process of
its own and prints its peak memory above the inputs instead.
"""

import argparse
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.metrics import HausdorffDistanceMetric, SurfaceDiceMetric
from monai.networks.utils import one_hot

from medseg.evaluation import score_case

sys.path.insert(0, str(Path(__file__).parent))
from timing import Row, interleaved_medians, print_table

TOLERANCE_MM = 1.0


def label_maps(size: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw prediction and reference, uint8."""
    axes = np.ogrid[:size, :size, :size]

    def draw(shift: float) -> np.ndarray:
        generator = np.random.default_rng(1)
        label_map = np.zeros((size, size, size), np.uint8)
        for value in range(1, num_classes + 1):
            centre = generator.uniform(0.18, 0.82, 3) * size + shift
            radii = generator.uniform(0.08, 0.17, 3) * size
            inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True)) <= 1
            label_map[inside] = value
        return label_map

    prediction, reference = draw(1.3), draw(0.0)
    prediction[:3, :3, :3] = 1
    return prediction, reference


def contenders(
    prediction: np.ndarray, reference: np.ndarray, num_classes: int, spacing: tuple[float, ...]
) -> dict[str, Callable[[], np.ndarray]]:
    """Return the functions to time; each returns the NSD of every class."""
    labels = {str(value): value for value in range(1, num_classes + 1)}

    def ours() -> np.ndarray:
        rows = score_case(prediction, reference, spacing, labels, tolerance_mm=TOLERANCE_MM)
        return np.array([row.values["nsd"] for row in rows])

    onehot: list[torch.Tensor] = []

    def theirs() -> np.ndarray:
        if not onehot:
            for array in (prediction, reference):
                tensor = torch.from_numpy(array)[None, None]
                onehot.append(one_hot(tensor, num_classes + 1, dtype=torch.uint8))
        HausdorffDistanceMetric(percentile=95)(*onehot, spacing=spacing)
        surface_dice = SurfaceDiceMetric([TOLERANCE_MM] * num_classes, use_subvoxels=True)
        return surface_dice(*onehot, spacing=spacing)[0].numpy()

    return {"medseg": ours, "monai": theirs}


def peak_above_inputs_mib(name: str, arguments: list[str]) -> float:
    """Return the peak memory of one contender in its own process, above its size before the run."""
    command = [sys.executable, __file__, "--run-one", name, *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Time both contenders, or measure their memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.0, 1.0, 1.0))
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--run-one", choices=("medseg", "monai"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.memory:
        arguments = ["--size", str(given.size), "--classes", str(given.classes)]
        for name in ("medseg", "monai"):
            print(f"{name}: {peak_above_inputs_mib(name, arguments):.0f} MiB above the label maps")
        return
    prediction, reference = label_maps(given.size, given.classes)
    functions = contenders(prediction, reference, given.classes, tuple(given.spacing))
    if given.run_one:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        functions[given.run_one]()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        return
    difference = float(np.abs(functions["medseg"]() - functions["monai"]()).max())
    medians = interleaved_medians(functions, given.repeats)
    monai, medseg = medians["monai"], medians["medseg"]
    topic = f"surface metrics, {given.size}³, {given.classes} classes"
    print(f"largest difference of the NSD: {difference:.1e}")
    print_table(
        [
            Row(topic, "medseg: Dice, NSD, HD95, ASSD, volumes, precision, recall", medseg, monai / medseg, "speed-up"),
            Row(topic, "MONAI: HD95 and NSD", monai, 1.0, "itself"),
        ]
    )


if __name__ == "__main__":
    main()
