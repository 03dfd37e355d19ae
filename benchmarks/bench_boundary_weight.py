"""Time the boundary weight map against one distance transform per cell over the whole volume.

    python benchmarks/bench_boundary_weight.py [--repeats 5] [--small]

The cells touch (Voronoi cells of random points) and are numbered; both ways separate them by ridges first. The common
way takes SciPy's distance transform of every cell over the whole volume, and the two smallest distances. medseg takes
the same transforms, each inside the cell's bounding box grown by the reach of the border term. Both compute the whole
map, class weights included; the largest difference between them is printed. The last rows grow the number of cells at a
fixed volume.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from medseg.transforms.boundary_weight import boundary_weight_map, class_weight_map, ridge_mask

sys.path.insert(0, str(Path(__file__).parent))
from timing import Row, interleaved_medians, print_table

W0, SIGMA = 10.0, 5.0


def touching_cells(shape: tuple[int, ...], num_cells: int) -> np.ndarray:
    """Voronoi cells of random points, numbered from 1; no background between them."""
    points = np.random.default_rng(0).uniform(0, 1, (num_cells, len(shape))) * np.array(shape)
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    return (cKDTree(points).query(voxels)[1] + 1).astype(np.int32)


def one_transform_per_cell(cells: np.ndarray) -> np.ndarray:
    """Compute the map from one distance transform of the whole volume per cell."""
    separated = np.where(ridge_mask(cells), 0, cells)
    first = np.full(cells.shape, np.inf, np.float32)
    second = first.copy()
    for number in np.unique(separated[separated > 0]):
        distance = ndimage.distance_transform_edt(separated != number).astype(np.float32)
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    border = W0 * np.exp(-((first + second) ** 2) / (2 * SIGMA**2))
    target = (separated > 0).astype(np.int64)
    weights: np.ndarray = class_weight_map(target, np.ones(cells.shape, bool), "balanced") + border * (target == 0)
    return weights


def ours(cells: np.ndarray) -> np.ndarray:
    weights: np.ndarray = boundary_weight_map(cells > 0, w0=W0, sigma=SIGMA, instance_map=cells).weights
    return weights


def rows(shape: tuple[int, ...], num_cells: int, repeats: int) -> list[Row]:
    cells = touching_cells(shape, num_cells)
    difference = np.abs(ours(cells) - one_transform_per_cell(cells)).max()
    topic = f"weight map, {num_cells} cells in {'×'.join(map(str, shape))}"
    print(f"{topic}: largest difference from one transform per cell {difference:.1e}")
    ways: dict[str, Callable[[], object] | None] = {"medseg": lambda: ours(cells)}
    times = interleaved_medians(ways, repeats)
    slow: dict[str, Callable[[], object] | None] = {"one transform per cell": lambda: one_transform_per_cell(cells)}
    times |= interleaved_medians(slow, max(1, repeats // 3))
    return [Row(topic, name, value, value / times["medseg"], "medseg") for name, value in times.items()]


def growth(shape: tuple[int, ...], counts: tuple[int, ...], repeats: int) -> list[Row]:
    inputs = {count: touching_cells(shape, count) for count in counts}
    times = interleaved_medians({str(n): lambda cells=cells: ours(cells) for n, cells in inputs.items()}, repeats)
    topic = f"weight map, more cells in {'×'.join(map(str, shape))}"
    first = str(counts[0])
    return [Row(topic, f"{n} cells", value, value / times[first], f"{first} cells") for n, value in times.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="check that it runs")
    arguments = parser.parse_args()
    plane, volume = ((96, 96), (24, 24, 24)) if arguments.small else ((512, 512), (96, 96, 96))
    cells = (10, 8) if arguments.small else (150, 120)
    table = [
        row
        for shape, count in zip((plane, volume), cells, strict=True)
        for row in rows(shape, count, arguments.repeats)
    ]
    for shape, count in zip((plane, volume), cells, strict=True):
        table += growth(shape, (count, 3 * count, 10 * count), arguments.repeats)
    print_table(table)


if __name__ == "__main__":
    main()
