"""Generate phantoms: microscopy volumes of touching cells of two classes, with label and instance maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from medseg.volumes import Grid, Volume, write_volume

LABELS = {"background": 0, "round": 1, "elongated": 2}
FOLDERS = ("images", "labels", "instances")
# Semi-axes in mm before deformation. Real cells are a thousand times smaller; the phantoms have the size of organs.
_SEMI_AXES_MM = {1: ((7.0, 9.0), (6.5, 8.5), (6.5, 8.5)), 2: ((12.5, 16.0), (4.5, 6.0), (4.5, 6.0))}
_DEFORMATION_MM = 1.6
_SMALLEST_CELL_MM3 = 250.0


@dataclass(frozen=True)
class PhantomCase:
    """Arrays of one case on one grid.

    Attributes:
        image: fluorescence, uint16.
        label: class of each voxel (`LABELS`), uint8.
        instances: number of each voxel's cell from 1, 0 in the background, uint16.
        grid: shape and affine of the arrays.
    """

    image: np.ndarray
    label: np.ndarray
    instances: np.ndarray
    grid: Grid


@dataclass(frozen=True)
class _Cell:
    centre_mm: np.ndarray
    semi_axes_mm: np.ndarray
    rotation: np.ndarray  # 3×3; the rows are the directions of the semi-axes
    label: int


def generate_phantoms(
    root: Path | str,
    num_cases: int = 24,
    seed: int = 0,
    shape: tuple[int, int, int] = (64, 64, 32),
    first_case: int = 0,
    overwrite: bool = False,
) -> list[str]:
    """Write the files phantom_000.nii.gz, … into ``images/``, ``labels/`` and ``instances/`` below ``root``.

    A case depends only on its number, ``seed`` and ``shape``. Cases can therefore be added later, and an interrupted
    run can be repeated.

    Args:
        root: folder of the dataset. It is created.
        num_cases: number of cases.
        seed: seed of the whole dataset.
        shape: voxels along i, j, k.
        first_case: number of the first case.
        overwrite: replace cases that exist already.

    Returns:
        The case ids.
    """
    numbers = range(first_case, first_case + num_cases)
    return [_write_case(Path(root), number, seed, shape, overwrite) for number in numbers]


def phantom_case(number: int, seed: int = 0, shape: tuple[int, int, int] = (64, 64, 32)) -> PhantomCase:
    """Generate case ``number`` of the dataset with this seed in memory."""
    return make_phantom_case(np.random.default_rng([seed, number]), shape)


def phantom_id(number: int) -> str:
    """Return the id of a case, e.g. "phantom_007" for 7."""
    return f"phantom_{number:03d}"


def make_phantom_case(
    rng: np.random.Generator, shape: tuple[int, int, int] = (64, 64, 32), num_cells: int = 48
) -> PhantomCase:
    """Generate one random case.

    Args:
        rng: the random generator. The same state gives the same case.
        shape: voxels along i, j, k. The spacing is random and coarser along k.
        num_cells: number of cells to place. Fewer remain, because cells without enough space are left out.

    Returns:
        The case. Every instance is one connected component of one class.
    """
    in_plane, through = rng.uniform(0.8, 1.1), rng.uniform(1.5, 2.2)
    spacing = np.array([in_plane, in_plane, through])
    grid = Grid(shape, _affine(rng, shape, spacing))
    points = _deformed_points(rng, shape, spacing)
    cells = _place_cells(rng, np.array(shape) * spacing, num_cells)
    instances, depth, labels = _draw_cells(points, cells, spacing)
    image = _simulate_image(rng, instances, depth, labels, spacing)
    return PhantomCase(image=image, label=labels[instances], instances=instances, grid=grid)


def _write_case(root: Path, number: int, seed: int, shape: tuple[int, int, int], overwrite: bool) -> str:
    case_id = phantom_id(number)
    files = [root / folder / f"{case_id}.nii.gz" for folder in FOLDERS]
    if overwrite or not all(file.is_file() and file.stat().st_size > 0 for file in files):
        case = phantom_case(number, seed, shape)
        like = Volume(array=case.image, grid=case.grid)
        for file, array in zip(files, (case.image, case.label, case.instances), strict=True):
            write_volume(file, array, like)
    return case_id


def _affine(rng: np.random.Generator, shape: tuple[int, ...], spacing: np.ndarray) -> np.ndarray:
    """Return an oblique, possibly flipped affine that puts the centre of the volume near the origin."""
    flips = np.where(rng.random(3) < 0.5, -1.0, 1.0)
    tilt = _rotation(rng.normal(size=3), np.deg2rad(rng.uniform(2, 25)))
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag(spacing * flips)
    affine[:3, 3] = rng.uniform(-20, 20, 3) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """Return the rotation by an angle in radians around an axis (Rodrigues' formula)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], control: int) -> np.ndarray:
    """Return a smooth field: cubic interpolation between control points of unit variance."""
    coarse = rng.normal(size=(control,) * len(shape))
    return ndimage.zoom(coarse, [size / control for size in shape], order=3, mode="nearest", grid_mode=True)


def _deformed_points(rng: np.random.Generator, shape: tuple[int, ...], spacing: np.ndarray) -> np.ndarray:
    """Return voxel positions in mm, displaced by a smooth field that dents the ellipsoids. Shape (3, *shape)."""
    points = np.indices(shape, dtype=np.float64) * spacing.reshape(3, 1, 1, 1)
    for axis in range(3):
        points[axis] += _DEFORMATION_MM * _smooth_noise(rng, shape, control=7)
    return points


def _place_cells(rng: np.random.Generator, extent_mm: np.ndarray, num_cells: int) -> list[_Cell]:
    """Place the cells one after another, mostly beside an existing cell, so that they touch in clumps."""
    cells: list[_Cell] = []
    for _ in range(num_cells):
        label = int(rng.integers(1, 3))
        axes = np.array([rng.uniform(*bounds) for bounds in _SEMI_AXES_MM[label]])
        rotation = _rotation(rng.normal(size=3), rng.uniform(0, np.pi))
        places = rng.uniform(0, extent_mm, (40, 3))
        gaps = np.full(len(places), np.inf)
        for other in cells:
            step = places - other.centre_mm
            distance = np.linalg.norm(step, axis=1, keepdims=True)
            unit = step / distance
            touching_mm = _radius(unit, other.semi_axes_mm, other.rotation) + _radius(unit, axes, rotation)
            gaps = np.minimum(gaps, distance[:, 0] / touching_mm)
        free = np.flatnonzero(gaps > 0.84)  # at less than 84 % of the touching distance one cell would cover another
        if len(free):
            is_new_clump = rng.random() < 0.2
            best = free[0] if is_new_clump else free[np.argmin(gaps[free])]
            cells.append(_Cell(places[best], axes, rotation, label))
    return cells


def _radius(unit: np.ndarray, axes: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Return the radius of an ellipsoid in each direction; directions (n, 3), radii (n,)."""
    return 1 / np.linalg.norm(unit @ rotation.T / axes, axis=1)


def _draw_cells(
    points: np.ndarray, cells: list[_Cell], spacing: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign each voxel to the cell whose ellipsoid contains it most deeply.

    Returns:
        Instances (uint16, from 1), depth (0 at a cell's surface, 1 at its centre), and the label of each instance.
    """
    shape = points.shape[1:]
    radius = np.full(shape, 1.0)  # distance from the centre of the cell; 1 is its surface
    owner = np.zeros(shape, dtype=np.int32)
    margin = 4 * _DEFORMATION_MM
    for number, cell in enumerate(cells, start=1):
        low = np.floor((cell.centre_mm - cell.semi_axes_mm.max() - margin) / spacing).astype(int).clip(0)
        high = np.ceil((cell.centre_mm + cell.semi_axes_mm.max() + margin) / spacing).astype(int) + 1
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        step = points[(slice(None), *box)] - cell.centre_mm.reshape(3, 1, 1, 1)
        distance = np.sqrt((np.tensordot(cell.rotation / cell.semi_axes_mm[:, None], step, axes=1) ** 2).sum(axis=0))
        closer = distance < radius[box]
        radius[box][closer] = distance[closer]
        owner[box][closer] = number
    return _largest_components(owner, radius, cells, float(spacing.prod()))


def _largest_components(
    owner: np.ndarray, radius: np.ndarray, cells: list[_Cell], voxel_mm3: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the largest component of every cell, remove tiny cells, and number the others from 1."""
    instances = np.zeros(owner.shape, dtype=np.uint16)
    labels = [0]
    for number, box in enumerate(ndimage.find_objects(owner, max_label=len(cells)), start=1):
        if box is None:
            continue
        pieces, count = ndimage.label(owner[box] == number)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        if sizes.max() * voxel_mm3 < _SMALLEST_CELL_MM3:
            continue
        instances[box][pieces == int(sizes.argmax()) + 1] = len(labels)
        labels.append(cells[number - 1].label)
    depth = np.where(instances > 0, 1 - radius, 0.0)
    return instances, depth, np.array(labels, dtype=np.uint8)


def _simulate_image(
    rng: np.random.Generator, instances: np.ndarray, depth: np.ndarray, labels: np.ndarray, spacing: np.ndarray
) -> np.ndarray:
    """Simulate the microscope: fluorescence, optical blur, uneven illumination, photon noise and read-out noise."""
    shape = instances.shape
    brightness = np.where(labels == 1, 1.0, 0.72) * rng.lognormal(0, 0.13, len(labels))
    brightness[0] = 0
    nucleus = np.where(labels == 1, 0.55, 0.0)[instances] / (1 + np.exp((0.55 - depth) / 0.06))
    # Cells are dimmer at their surface, so that a dark line separates two of them.
    rim = np.sqrt(np.clip(depth / 0.3, 0, 1))
    texture = 1 + 0.16 * ndimage.gaussian_filter(rng.normal(size=shape), 1.2 / spacing) * 3
    light = brightness[instances] * (0.45 + 0.55 * rim) * (1 - nucleus) * texture
    light = ndimage.gaussian_filter(light, np.array([0.7, 0.7, 1.3]) / spacing)
    debris = ndimage.gaussian_filter((rng.random(shape) < 2e-4) * rng.exponential(12, shape), 0.8 / spacing)
    bias = np.exp(0.22 * _smooth_noise(rng, shape, control=3))
    haze = 0.10 + 0.04 * _smooth_noise(rng, shape, control=4)
    photons = 55 * rng.uniform(0.8, 1.25)
    counts = rng.poisson(photons * np.clip((light + debris) * bias + haze, 0.01, None))
    signal = 100 + 18 * counts + rng.normal(0, 40, shape)
    return np.clip(np.rint(signal), 0, 65535).astype(np.uint16)
