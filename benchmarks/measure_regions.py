"""Measure how well `brain_t1_hippocampi_segmentation` finds and measures the hippocampi of changed heads.

Each head is turned, shifted, cropped, padded, resampled and made noisy; the table gives the distance between the region
centres found and those of the unchanged head, and the change of the volumes. Dice is against FreeSurfer's labels, which
follow another protocol than the network's training data.

    python benchmarks/measure_regions.py --data DATA/brain_t1 [--rotations 20] [--orientations]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path
from time import process_time

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

import medseg
from medseg.errors import RegionError
from medseg.inference import Predictor

BUNDLE = Path(__file__).parents[1] / "bundles" / "brain_t1_hippocampi_segmentation"
HEADS = ("t1_with_skull.nii.gz", "t1_brain.mgz", "mni152_2009.nii.gz")
Variant = tuple[np.ndarray, np.ndarray, np.ndarray]


def resampled(array: np.ndarray, affine: np.ndarray, target: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    matrix = np.linalg.inv(affine) @ target
    return ndimage.affine_transform(array, matrix[:3, :3], matrix[:3, 3], shape, order=1)


def turned(array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Variant:
    """Turn a head by up to 20 degrees and shift it by up to 30 mm, on a grid 15 voxels larger on each side."""
    axis, shift = rng.normal(size=(2, 3))
    angle, distance = rng.uniform(5, 20), rng.uniform(0, 30)
    move = np.eye(4)
    move[:3, :3] = Rotation.from_rotvec(np.deg2rad(angle) * axis / np.linalg.norm(axis)).as_matrix()
    center = affine[:3, :3] @ ((np.array(array.shape) - 1) / 2) + affine[:3, 3]
    move[:3, 3] = center + distance * shift / np.linalg.norm(shift) - move[:3, :3] @ center
    grid = affine.copy()
    grid[:3, 3] -= affine[:3, :3] @ [15, 15, 15]
    shape = tuple(n + 30 for n in array.shape)
    return resampled(array, affine, np.linalg.inv(move) @ grid, shape), grid, move


def respaced(array: np.ndarray, affine: np.ndarray, spacing: float) -> Variant:
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    grid = affine.copy()
    grid[:3, :3] *= spacing / steps
    shape = tuple(int(n * step / spacing) for n, step in zip(array.shape, steps, strict=True))
    sigma = [0.4 * spacing / step if spacing > step else 0 for step in steps]
    return resampled(ndimage.gaussian_filter(array, sigma), affine, grid, shape), grid, np.eye(4)


def cropped(array: np.ndarray, affine: np.ndarray, low: tuple[int, ...], high: tuple[int, ...]) -> Variant:
    grid = affine.copy()
    grid[:3, 3] += affine[:3, :3] @ low
    part = array[tuple(slice(a, n - b) for a, b, n in zip(low, high, array.shape, strict=True))]
    return part, grid, np.eye(4)


def padded_below(array: np.ndarray, affine: np.ndarray, slices: int) -> Variant:
    """Lengthen the neck by a mirror image of the slices above it."""
    grid = affine.copy()
    grid[:3, 3] -= affine[:3, 2] * slices
    return np.pad(array, ((0, 0), (0, 0), (slices, 0)), mode="reflect"), grid, np.eye(4)


def variants(array: np.ndarray, affine: np.ndarray, has_skull: bool, rotations: int) -> Iterator[tuple[str, Variant]]:
    """Yield names and changed heads, with the 4×4 matrix by which the head was moved."""
    rng = np.random.default_rng(0)
    yield "unchanged", (array, affine, np.eye(4))
    for number in range(rotations):
        yield f"turned and shifted {number + 1}", turned(array, affine, rng)
    for spacing in (0.7, 1.0, 1.5):
        yield f"resampled to {spacing} mm", respaced(array, affine, spacing)
    noise = rng.normal(0, 0.05 * np.percentile(array, 99), array.shape).astype(np.float32)
    yield "noise of 5 %", (array + noise, affine, np.eye(4))
    if has_skull:
        yield "60 mm more neck", padded_below(array, affine, 68)
        yield "140 mm more neck", padded_below(array, affine, 159)
        yield "20 mm cropped below", cropped(array, affine, (0, 0, 22), (0, 0, 0))
        yield "20 mm cropped above", cropped(array, affine, (0, 0, 0), (0, 0, 22))
        yield "50 mm of the face cropped", cropped(array, affine, (0, 0, 0), (0, 60, 0))


def orientations(array: np.ndarray, affine: np.ndarray) -> Iterator[tuple[str, Variant]]:
    """Yield the head in all 48 orders and directions of its axes."""
    image = nib.Nifti1Image(array, affine)
    for order, directions in product(permutations(range(3)), product((1, -1), repeat=3)):
        change = np.array([[order.index(axis), directions[axis]] for axis in range(3)])
        other = image.as_reoriented(change)
        name = "".join(nib.aff2axcodes(other.affine))
        yield f"axes {name}", (np.asarray(other.dataobj), other.affine, np.eye(4))


def volumes(model: Predictor, array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Volumes in ml (left, right), box centres in mm, correlation and CPU seconds of one scan."""
    started = process_time()
    result = model.predict((array, affine))
    ml = result.volumes_ml()
    sides = np.array([sum(v for name, v in ml.items() if name.startswith(side)) for side in ("left", "right")])
    regions = result.provenance["regions"]
    matrix = np.array(regions["matrix"])
    centers = [matrix[:3, :3] @ c + matrix[:3, 3] for c in ((-26, -21, -14), (26, -21, -14))]
    return sides, np.array(centers), regions["correlation"], process_time() - started


def print_orientations(model: Predictor, array: np.ndarray, affine: np.ndarray) -> None:
    """Print the largest difference between the orientations of a head."""
    sides, centers, names = [], [], []
    for name, (changed, grid, _) in orientations(array, affine):
        found, places, _, _ = volumes(model, changed, grid)
        sides.append(found)
        centers.append(places)
        names.append(name)
    apart = np.linalg.norm(np.array(centers) - centers[0], axis=2).max(axis=1)
    change = 100 * np.abs(np.array(sides) / sides[0] - 1).max(axis=1)
    worst = int(change.argmax())
    print(
        f"| {len(set(names))} orientations | {apart.max():.3f} | {sides[worst][0]:.3f} | {sides[worst][1]:.3f} | "
        f"at most {change.max():.2f} ({names[worst]}) | | |",
        flush=True,
    )


def main() -> None:
    """Print the table of each head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the three heads")
    parser.add_argument("--rotations", type=int, default=20)
    parser.add_argument("--orientations", action="store_true", help="all 48 orientations, and nothing else")
    arguments = parser.parse_args()
    model = medseg.load(BUNDLE, device="cpu", precision="fp32")
    for head in HEADS:
        image = nib.as_closest_canonical(nib.load(arguments.data / head))
        array, affine = np.asarray(image.dataobj, dtype=np.float32), image.affine
        print(
            f"\n{head}\n| variant | distance mm | left ml | right ml | change % | correlation | CPU s |\n"
            + "|---" * 7
            + "|"
        )
        reference: tuple[np.ndarray, np.ndarray] | None = None
        if arguments.orientations:
            print_orientations(model, array, affine)
            continue
        for name, (changed, grid, move) in variants(array, affine, "skull" in head, arguments.rotations):
            try:
                sides, centers, correlation, seconds = volumes(model, changed, grid)
            except RegionError as error:
                print(f"| {name} | {error} |", flush=True)
                continue
            reference = reference or (sides, centers)
            truth = reference[1] @ move[:3, :3].T + move[:3, 3]
            apart = np.linalg.norm(truth - centers, axis=1).max()
            change = 100 * (sides / reference[0] - 1)
            print(
                f"| {name} | {apart:.2f} | {sides[0]:.2f} | {sides[1]:.2f} | {change[0]:+.1f}, {change[1]:+.1f} | "
                f"{correlation:.2f} | {seconds:.1f} |",
                flush=True,
            )
    labels = nib.load(arguments.data / "t1_brain_hippocampi.nii.gz")
    found = model.predict(arguments.data / "t1_brain.mgz")
    reference_labels = np.asarray(labels.dataobj)
    for value, side in ((1, "left"), (2, "right")):
        mine = np.isin(found.array, [v for name, v in found.labels.items() if name.startswith(side)])
        theirs = reference_labels == value
        print(f"Dice against FreeSurfer, {side}: {2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()):.3f}")


if __name__ == "__main__":
    main()
