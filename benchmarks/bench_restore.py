"""Time the restoration of logits on the model grid to labels on the native grid against nnU-Net's way.

    python benchmarks/bench_restore.py [--scale 1.0] [--classes 14] [--repeats 1]

14 classes are resampled from 256×256×100 to 512×512×300 voxels (times --scale). nnU-Net resamples the logits class by
class (`resample_data_or_seg`: `skimage.transform.resize`, order 3, mode edge, no anti-aliasing, in float64), then takes
the argmax. `resize` calls `scipy.ndimage.zoom(…, grid_mode=True)`, which is called here. For spacings that differ by a
factor of three it resamples slices (order 3) and takes the nearest slice across (separate_z). Both ways are timed with
every class. The logits resemble those of an abdomen: a few dozen ellipsoids of 13 organs with blurred boundaries.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from timing import Row, print_table

from medseg.transforms.restore.label_decision import LabelDecision
from medseg.transforms.restore.restore_labels import restore_labels

MODEL, NATIVE = (256, 256, 100), (512, 512, 300)


def organ_logits(shape: tuple[int, ...], classes: int) -> np.ndarray:
    """Make logits (classes, *shape) of overlapping ellipsoids with soft boundaries and some noise."""
    rng = np.random.default_rng(0)
    labels = np.zeros(shape, dtype=np.uint8)
    index = [np.linspace(0, 1, n).reshape([-1 if a == axis else 1 for a in range(3)]) for axis, n in enumerate(shape)]
    for number in range(3 * classes):
        centre, radii = rng.uniform(0.15, 0.85, 3), rng.uniform(0.03, 0.15, 3)
        inside = sum(((x - c) / r) ** 2 for x, c, r in zip(index, centre, radii, strict=True)) < 1
        labels[np.broadcast_to(inside, shape)] = 1 + number % (classes - 1)
    logits = np.empty((classes, *shape), dtype=np.float32)
    for c in range(classes):
        logits[c] = 12 * gaussian_filter((labels == c).astype(np.float32), 1.0)
        logits[c] += gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 2.0)
    return logits


def nnunet_labels(logits: np.ndarray, native: tuple[int, ...], order: int, is_separate: bool) -> np.ndarray:
    """Resample every class as nnU-Net does, then take the argmax."""
    factors = np.asarray(native) / np.asarray(logits.shape[1:])
    resized = np.empty((len(logits), *native), dtype=np.float32)
    for c, channel in enumerate(logits.astype(np.float64)):
        if not is_separate:
            resized[c] = zoom(channel, factors, order=order, mode="nearest", grid_mode=True)
            continue
        slices = [zoom(s, factors[:2], order=order, mode="nearest", grid_mode=True) for s in np.moveaxis(channel, 2, 0)]
        stack = np.stack(slices, axis=-1)
        across = (np.arange(native[2]) + 0.5) / factors[2] - 0.5
        where = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in native[:2]), across, indexing="ij")
        resized[c] = map_coordinates(stack, where, order=0, mode="nearest")
    return resized.argmax(0).astype(np.uint8)


def timed(name: str, work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the median seconds of a call, and its result; print each run, in case the benchmark is stopped."""
    seconds = []
    for number in range(repeats):
        begin = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - begin)
        print(f"{name}: run {number + 1} of {repeats}: {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    return float(np.median(seconds)), result


def main() -> None:
    """Time every way and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument(
        "--repeats", type=int, default=1, help="repeats of the slow ways; medseg is repeated five times as often"
    )
    arguments = parser.parse_args()
    model = tuple(max(8, round(n * arguments.scale)) for n in MODEL)
    native = tuple(max(8, round(n * arguments.scale)) for n in NATIVE)
    logits = organ_logits(model, arguments.classes)
    # With this affine voxel centres have the same positions in all ways: edge to edge, as in resize and zoom.
    factor = np.asarray(model) / np.asarray(native)
    affine = np.diag([*factor, 1.0])
    affine[:3, 3] = 0.5 * factor - 0.5
    decision, tensor = LabelDecision(range(arguments.classes)), torch.from_numpy(logits)

    def ours(interpolation: Any) -> torch.Tensor:
        return restore_labels(tensor, np.eye(4), affine, native, decision, interpolation)

    ours("linear")
    found = {
        name: timed(name, lambda kind=kind: ours(kind).numpy(), 5 * arguments.repeats)  # type: ignore[misc]
        for name, kind in (("medseg linear", "linear"), ("medseg cubic", "cubic"))
    }
    for order, is_separate in ((1, False), (3, False), (3, True)):
        name = f"nnU-Net's way, order {order}" + (", slice by slice" if is_separate else "")
        found[name] = timed(name, lambda o=order, s=is_separate: nnunet_labels(logits, native, o, s), arguments.repeats)  # type: ignore[misc]
    seconds, labels = found["medseg linear"]
    shape = " → ".join("×".join(map(str, size)) for size in (model, native))
    topic = f"{arguments.classes} classes {shape}, {(labels > 0).mean():.0%} foreground"
    rows = []
    for name, (each, result) in found.items():
        same = (result == labels).mean()
        rows.append(Row(topic, f"{name}; labels equal to linear's {same:.5f}", each, each / seconds, "medseg linear"))
    print_table(rows)


if __name__ == "__main__":
    main()
