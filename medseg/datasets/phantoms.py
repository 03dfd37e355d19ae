"""Generating the phantom data set as NIfTI files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from medseg.volumes import Grid, Volume, write_volume

LABELS = {"background": 0, "round": 1, "elongated": 2}
# Semi-axes in mm (the scale of the phantom; a microscope's would be micrometres), before deformation.
SEMI_AXES_MM = {1: ((7.0, 9.0), (6.5, 8.5), (6.5, 8.5)), 2: ((12.5, 16.0), (4.5, 6.0), (4.5, 6.0))}
DEFORMATION_MM = 1.6
SMALLEST_CELL_MM3 = 250.0


@dataclass(frozen=True)
class PhantomCase:
    """Arrays of one case on one grid: ``image`` uint16, ``label`` uint8 (``LABELS``), ``instances`` uint16 (1…n)."""

    image: np.ndarray
    label: np.ndarray
    instances: np.ndarray
    grid: Grid


@dataclass(frozen=True)
class _Cell:
    centre_mm: np.ndarray
    axes_mm: np.ndarray  # semi-axes
    turn: np.ndarray  # 3×3, rows are the directions of the semi-axes
    kind: int


def make_phantom_case(
    rng: np.random.Generator, shape: tuple[int, int, int] = (64, 64, 32), num_cells: int = 48
) -> PhantomCase:
    """Draw one case.

    Args:
        rng: the source of everything random; the same state gives the same case.
        shape: voxels along i, j, k; the spacing is drawn, coarser along k.
        num_cells: cells tried; crowded-out ones are left away, so that fewer remain.

    Returns:
        The case. Every instance is one connected piece of one class.
    """
    in_plane, through = rng.uniform(0.8, 1.1), rng.uniform(1.5, 2.2)
    spacing = np.array([in_plane, in_plane, through])
    grid = Grid(shape, _affine(rng, shape, spacing))
    points = _deformed_points(rng, shape, spacing)
    cells = _place_cells(rng, np.array(shape) * spacing, num_cells)
    instances, depth, kinds = _fill(points, cells, spacing)
    label = kinds[instances]
    image = _expose(rng, instances, depth, kinds, spacing)
    return PhantomCase(image=image, label=label, instances=instances, grid=grid)


def _affine(rng: np.random.Generator, shape: tuple[int, ...], spacing: np.ndarray) -> np.ndarray:
    """A tilted, possibly flipped affine with the volume's centre near the world's origin."""
    flips = np.where(rng.random(3) < 0.5, -1.0, 1.0)
    tilt = _rotation(rng.normal(size=3), np.deg2rad(rng.uniform(2, 25)))
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag(spacing * flips)
    affine[:3, 3] = rng.uniform(-20, 20, 3) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' formula."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], control: int) -> np.ndarray:
    """A smooth field with control points of unit variance, cubic between them."""
    coarse = rng.normal(size=(control,) * len(shape))
    return ndimage.zoom(coarse, [size / control for size in shape], order=3, mode="nearest", grid_mode=True)


def _deformed_points(rng: np.random.Generator, shape: tuple[int, ...], spacing: np.ndarray) -> np.ndarray:
    """Voxel positions in mm, moved by a smooth field: ellipsoids drawn in them come out dented. Shape (3, *shape)."""
    points = np.indices(shape, dtype=np.float64) * spacing.reshape(3, 1, 1, 1)
    for axis in range(3):
        points[axis] += DEFORMATION_MM * _smooth_noise(rng, shape, control=7)
    return points


def _place_cells(rng: np.random.Generator, extent_mm: np.ndarray, num_cells: int) -> list[_Cell]:
    """Sequential placement: mostly at the free place nearest to a cell already there, so that cells touch in clumps."""
    cells: list[_Cell] = []
    for _ in range(num_cells):
        kind = int(rng.integers(1, 3))
        axes = np.array([rng.uniform(*bounds) for bounds in SEMI_AXES_MM[kind]])
        turn = _rotation(rng.normal(size=3), rng.uniform(0, np.pi))
        places = rng.uniform(0, extent_mm, (40, 3))
        gaps = np.full(len(places), np.inf)
        for other in cells:
            step = places - other.centre_mm
            distance = np.linalg.norm(step, axis=1, keepdims=True)
            unit = step / distance
            reach = _reach(unit, other.axes_mm, other.turn) + _reach(unit, axes, turn)
            gaps = np.minimum(gaps, distance[:, 0] / reach)
        free = np.flatnonzero(gaps > 0.84)  # centres closer than 84 % of touching distance would bury a cell
        if len(free):
            is_new_clump = rng.random() < 0.2
            best = free[0] if is_new_clump else free[np.argmin(gaps[free])]
            cells.append(_Cell(places[best], axes, turn, kind))
    return cells


def _reach(unit: np.ndarray, axes: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """How far an ellipsoid extends from its centre in each direction (n, 3) → (n,)."""
    return 1 / np.linalg.norm(unit @ turn.T / axes, axis=1)


def _fill(points: np.ndarray, cells: list[_Cell], spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give each voxel to the cell whose ellipsoid holds it deepest.

    Returns:
        instances (uint16, numbered from 1), depth (0 at a cell's surface, 1 at its centre), class of each number.
    """
    shape = points.shape[1:]
    radius = np.full(shape, 1.0)  # distance from the centre in units of the ellipsoid; 1 is its surface
    owner = np.zeros(shape, dtype=np.int32)
    margin = 4 * DEFORMATION_MM
    for number, cell in enumerate(cells, start=1):
        low = np.floor((cell.centre_mm - cell.axes_mm.max() - margin) / spacing).astype(int).clip(0)
        high = np.ceil((cell.centre_mm + cell.axes_mm.max() + margin) / spacing).astype(int) + 1
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        step = points[(slice(None), *box)] - cell.centre_mm.reshape(3, 1, 1, 1)
        distance = np.sqrt((np.tensordot(cell.turn / cell.axes_mm[:, None], step, axes=1) ** 2).sum(axis=0))
        closer = distance < radius[box]
        radius[box][closer] = distance[closer]
        owner[box][closer] = number
    return _whole_cells(owner, radius, cells, float(spacing.prod()))


def _whole_cells(
    owner: np.ndarray, radius: np.ndarray, cells: list[_Cell], voxel_mm3: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the largest piece of every cell, drop slivers, and number what is left from 1."""
    instances = np.zeros(owner.shape, dtype=np.uint16)
    kinds = [0]
    for number, box in enumerate(ndimage.find_objects(owner, max_label=len(cells)), start=1):
        if box is None:
            continue
        pieces, count = ndimage.label(owner[box] == number)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        if sizes.max() * voxel_mm3 < SMALLEST_CELL_MM3:
            continue
        instances[box][pieces == int(sizes.argmax()) + 1] = len(kinds)
        kinds.append(cells[number - 1].kind)
    depth = np.where(instances > 0, 1 - radius, 0.0)
    return instances, depth, np.array(kinds, dtype=np.uint8)


def _expose(
    rng: np.random.Generator, instances: np.ndarray, depth: np.ndarray, kinds: np.ndarray, spacing: np.ndarray
) -> np.ndarray:
    """The microscope: fluorescence, blur of the optics (worse along k), uneven light, photon and read-out noise."""
    shape = instances.shape
    brightness = np.where(kinds == 1, 1.0, 0.72) * rng.lognormal(0, 0.13, len(kinds))
    brightness[0] = 0
    nucleus = np.where(kinds == 1, 0.55, 0.0)[instances] / (1 + np.exp((0.55 - depth) / 0.06))
    rim = np.sqrt(np.clip(depth / 0.3, 0, 1))  # thinner towards the surface, hence dimmer: a faint valley between cells
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


FOLDERS = ("images", "labels", "instances")


def generate_phantoms(
    root: Path | str,
    num_cases: int = 24,
    seed: int = 0,
    shape: tuple[int, int, int] = (64, 64, 32),
    first_case: int = 0,
    overwrite: bool = False,
) -> list[str]:
    """Write ``images/``, ``labels/`` and ``instances/`` of phantom_000.nii.gz … under ``root``.

    A case depends on its own number, ``seed`` and ``shape`` alone, so that more cases can be added later and an
    interrupted run goes on where it stopped.

    Args:
        root: the data set's folder; created.
        num_cases: how many.
        seed: of the whole data set.
        shape: voxels along i, j, k.
        first_case: number of the first one.
        overwrite: write cases again that are there already.

    Returns:
        The case ids.
    """
    return [
        _write_case(Path(root), number, seed, shape, overwrite) for number in range(first_case, first_case + num_cases)
    ]


def phantom_case(number: int, seed: int = 0, shape: tuple[int, int, int] = (64, 64, 32)) -> PhantomCase:
    """Case ``number`` of the data set with this seed, in memory."""
    return make_phantom_case(np.random.default_rng([seed, number]), shape)


def phantom_id(number: int) -> str:
    """The id of a case: 7 → "phantom_007"."""
    return f"phantom_{number:03d}"


def _write_case(root: Path, number: int, seed: int, shape: tuple[int, int, int], overwrite: bool) -> str:
    case_id = phantom_id(number)
    files = [root / folder / f"{case_id}.nii.gz" for folder in FOLDERS]
    if overwrite or not _all_there(files):
        case = phantom_case(number, seed, shape)
        like = Volume(array=case.image, grid=case.grid)
        for file, array in zip(files, (case.image, case.label, case.instances), strict=True):
            write_volume(file, array, like)
    return case_id


def _all_there(files: Iterable[Path]) -> bool:
    return all(file.is_file() and file.stat().st_size > 0 for file in files)
