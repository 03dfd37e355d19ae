"""Locate regions of interest in a scan by registration of a low-resolution template.

The template is registered to the scan by an affine transform that maximises Mattes' mutual information (Mattes et al.
2003, doi:10.1109/TMI.2003.809072; ITK's implementation). The search begins at several places and angles, and a second
search from a disturbed start must find the same place. A scan that does not resemble the template is refused: a region
at the wrong place would give a wrong volume without any other sign.

Points are in mm of the patient (RAS+); SimpleITK's own points are LPS+.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage, sparse
from scipy.spatial.transform import Rotation

from medseg.errors import RegionError
from medseg.inference.scan_size import growth_along, refuse_growth
from medseg.volumes import Grid, Volume, read_volume, write_volume
from medseg.volumes.itk import to_simpleitk

# Low enough that blood vessels and noise vanish; the regions are found within half a millimetre at this spacing.
SPACING_MM = 4.0
# Neck below this distance from the vertex does not take part in the third start.
UPPER_HEAD_MM = 170.0
# Angles about the left–right axis at which a search begins; heads in a coil are nodded by up to 30 degrees.
NODS_DEG = (0.0, 25.0, -25.0)
DISTURBED_DEG, DISTURBED_MM = (6.0, -5.0, 4.0), (7.0, -6.0, 5.0)
MAX_DISAGREEMENT_MM = 3.0
SCALES = (0.75, 1.35)
# Correlation between template and scan in the template's mask: 0.69 to 0.90 in T1-weighted heads, also with strong
# noise or blur, and 0.64 where a part of the brain is cut off; at most 0.56 at wrong places and in other images.
MIN_CORRELATION = 0.6
MIN_OVERLAP = 0.4
DIRECTIONS = ("left–right", "posterior–anterior", "inferior–superior")


@dataclass(frozen=True, eq=False)
class Template:
    """A low-resolution image in whose coordinates the regions of a plan are given.

    Args:
        array: (i, j, k) intensities; voxels above 0 are the template's mask.
        affine: voxel index to mm (RAS+) of the template's space.
    """

    array: np.ndarray
    affine: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """The voxels that must resemble the scan."""
        return self.array > 0

    @cached_property
    def center_mm(self) -> np.ndarray:
        """Centre of mass of the mask."""
        return _apply(self.affine, np.argwhere(self.mask).mean(axis=0))

    def turned(self, axis: int) -> Template:
        """Return the template turned by 180 degrees about its centre and one of the patient's axes (0 = left–right)."""
        turn = np.eye(4)
        turn[:3, :3] = 2 * np.diag(np.eye(3)[axis]) - np.eye(3)
        turn[:3, 3] = self.center_mm - turn[:3, :3] @ self.center_mm
        return Template(self.array, turn @ self.affine)


@dataclass(frozen=True, eq=False)
class Location:
    """An affine transform from the template to a scan.

    Args:
        matrix: 4×4, mm of the template to mm of the scan.
        correlation: Pearson correlation of template and scan in the template's mask; None if not registered.
        overlap: fraction of the template's mask inside the scan's field of view.
        disagreement_mm: largest distance between the region centres of two searches.
    """

    matrix: np.ndarray
    correlation: float | None = None
    overlap: float = 1.0
    disagreement_mm: float = 0.0

    @cached_property
    def rotation(self) -> np.ndarray:
        """The rotation closest to the transform's linear part, 3×3."""
        left, _, right = np.linalg.svd(self.matrix[:3, :3])
        return left @ right

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """Singular values of the linear part: size of the scan's head relative to the template's, largest first."""
        return tuple(float(value) for value in np.linalg.svd(self.matrix[:3, :3])[1])

    def to_scan(self, point_mm: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the position in the scan of a point of the template, both in mm."""
        return _apply(self.matrix, np.asarray(point_mm, dtype=np.float64))

    def to_dict(self) -> dict[str, Any]:
        """Return the location as plain data for the record of a case."""
        correlation = None if self.correlation is None else round(self.correlation, 4)
        return {
            "correlation": correlation,
            "scales": [round(scale, 4) for scale in self.scales],
            "overlap": round(self.overlap, 3),
            "disagreement_mm": round(self.disagreement_mm, 2),
            "matrix": np.round(self.matrix, 5).tolist(),
        }


def read_template(path: str | Path) -> Template:
    """Read a template that `write_template` made.

    Raises:
        VolumeError: the file cannot be read.
        RegionError: it holds no voxel above 0.
    """
    volume = read_volume(Path(path), spatial_dims=3, is_quiet=True)
    if not np.any(volume.array > 0):
        raise RegionError(f"{path}: the template has no voxel above 0, so there is nothing to register")
    return Template(np.asarray(volume.array, dtype=np.float32), volume.grid.affine)


def write_template(source: str | Path, target: str | Path, spacing_mm: float = SPACING_MM) -> Path:
    """Make a small template of an atlas image, for a bundle of your own.

    Args:
        source: an image whose voxels are 0 outside the structure that is to be found, such as a skull-stripped head.
        target: file to write, 8 bit; `.nii.gz` is the smallest.
        spacing_mm: voxel size of the template.

    Raises:
        VolumeError: a file cannot be read or written.
    """
    volume = read_volume(Path(source), spatial_dims=3)
    array, affine = low_resolution(volume.array, volume.grid.affine, spacing_mm)
    inside, _ = low_resolution(volume.array > 0, volume.grid.affine, spacing_mm)
    scaled = np.clip(array / np.percentile(array[inside > 0.5], 99.9) * 255, 1, 255).round()
    small = np.where(inside > 0.5, scaled, 0).astype(np.uint8)
    target = Path(target)
    write_volume(target, small, like=Volume(small, Grid(small.shape, affine)))
    return target


def locate(
    array: np.ndarray,
    affine: np.ndarray,
    template: Template,
    centers_mm: Mapping[str, Sequence[float]],
    name: str = "scan",
) -> Location:
    """Register a template to a scan.

    The result does not depend on the number of threads.

    Args:
        array: (i, j, k) intensities of the scan.
        affine: voxel index to mm (RAS+).
        template: what to look for.
        centers_mm: centre of each region in mm of the template; two searches must agree there.
        name: the scan's file, for error messages.

    Raises:
        RegionError: the template is not found, or not at one place.
    """
    options = region_center_hint(centers_mm)
    with _one_thread():
        search = _Search(array, affine, template, name, options)
        found = search.from_all_starts()
        again = search.refine(search.disturbed(found))
        matrix, other = _matrix(found), _matrix(again)
        points = np.array([list(center) for center in centers_mm.values()], dtype=np.float64)
        apart = float(np.linalg.norm(_apply(matrix, points) - _apply(other, points), axis=1).max())
        correlation, overlap = search.similarity(matrix)
        location = Location(matrix, correlation, overlap, apart)
        search.check(location)
    return location


def region_center_hint(names: Mapping[str, Any] | Sequence[str]) -> str:
    """Return the end of an error message that says how to give the regions' centres."""
    return "give the centres in mm (RAS) with " + " ".join(f"--region-centre {name}=x,y,z" for name in names)


def low_resolution(array: np.ndarray, affine: np.ndarray, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Resample an image to a coarse grid with the same directions and centre, after Gaussian smoothing.

    The Gaussian's standard deviation is 0.42 of the coarse spacing. The sum runs over a few voxels per axis, in one
    thread and in a fixed order.

    Args:
        array: (i, j, k).
        affine: voxel index to mm; its axes may be turned, but not sheared.
        spacing_mm: of the coarse grid.

    Returns:
        The image in float32, and its affine.
    """
    values = np.asarray(array)
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    first, ratios = [], []
    for axis, step in enumerate(steps):
        size, ratio = values.shape[axis], spacing_mm / step
        count = max(1, int(np.ceil(round(size / ratio, 6))))
        origin = (size - 1) / 2 - (count - 1) / 2 * ratio
        weights = _gaussian_weights(size, count, origin, ratio)
        moved = np.moveaxis(values, axis, 0)
        flat = np.ascontiguousarray(moved.reshape(size, -1), dtype=np.float32)
        values = np.moveaxis((weights @ flat).reshape(count, *moved.shape[1:]), 0, axis)
        first.append(origin)
        ratios.append(ratio)
    coarse = np.array(affine, dtype=np.float64)
    coarse[:3, 3] = _apply(affine, np.array(first))
    coarse[:3, :3] = affine[:3, :3] * np.array(ratios)
    return np.ascontiguousarray(values, dtype=np.float32), coarse


def _gaussian_weights(size: int, count: int, origin: float, ratio: float) -> sparse.csr_matrix:
    """Weights (count, size) of a smoothed resampling along one axis; the border voxel is repeated outside."""
    sigma = max(0.42 * ratio, 1e-3) if ratio > 1 else 0.3
    reach = max(1, int(np.ceil(3 * sigma)))
    centers = origin + ratio * np.arange(count)
    index = np.round(centers).astype(int)[:, None] + np.arange(-reach, reach + 1)[None]
    weights = np.exp(-0.5 * ((index - centers[:, None]) / sigma) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(count), index.shape[1])
    columns = index.clip(0, size - 1).ravel()
    return sparse.csr_matrix((weights.ravel().astype(np.float32), (rows, columns)), shape=(count, size))


class _Search:
    """Registrations of one template to one scan."""

    def __init__(self, array: np.ndarray, affine: np.ndarray, template: Template, name: str, hint: str) -> None:
        self.name, self.hint = name, hint
        grid = Grid(np.shape(array), affine)
        factor = growth_along(grid.shape, [size / SPACING_MM for size in grid.spacing])
        refuse_growth(name, grid, factor, [SPACING_MM] * 3)
        coarse, self.affine = low_resolution(array, affine, SPACING_MM)
        low, high = np.percentile(coarse, [0, 99.8])
        if not high > low:
            raise self._failure("has the same intensity everywhere", "is this the right file?")
        self.scan = np.clip(coarse, low, high).astype(np.float32)  # ITK wants both images of one type
        directions = self.affine[:3, :3] / SPACING_MM
        if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-3):
            raise self._failure("has axes that are not perpendicular", "resample it onto a straight grid.")
        self.moving = to_simpleitk(self.scan, Grid(self.scan.shape, self.affine))
        self._use(template)

    def _use(self, template: Template) -> None:
        self.template = template
        grid = Grid(template.array.shape, template.affine)
        self.fixed = to_simpleitk(template.array, grid)
        # One voxel around the template tells where it ends, and no more: a skull may or may not follow.
        near = ndimage.binary_dilation(template.mask)
        self.mask = to_simpleitk(near.astype(np.uint8), grid)

    def from_all_starts(self) -> sitk.AffineTransform:
        """Return the best of the searches from all starts, refined."""
        best = self._best(self._starts(NODS_DEG))
        if best is None:
            raise self._failure("does not overlap with the template from any start", "is it a whole head?")
        return self.refine(best)

    def _best(self, starts: Iterable[sitk.Similarity3DTransform]) -> sitk.Similarity3DTransform | None:
        found = [result for result in map(self._similarity_search, starts) if result is not None]
        return min(found, key=lambda result: result[0])[1] if found else None

    def refine(self, start: sitk.Similarity3DTransform) -> sitk.AffineTransform:
        """Search for an affine transform from a similarity transform, first at twice the spacing."""
        affine = sitk.AffineTransform(3)
        affine.SetCenter(start.GetCenter())
        affine.SetMatrix(start.GetMatrix())
        affine.SetTranslation(start.GetTranslation())
        if self._register(affine, (2, 1), step_mm=1.0, smallest_mm=0.01) is None:
            raise self._failure("was lost while the template was fitted to it", "is it a whole head?")
        return affine

    def disturbed(self, found: sitk.AffineTransform) -> sitk.Similarity3DTransform:
        """Return a similarity transform near one that was found, turned by 9 degrees and moved by 10 mm, searched."""
        matrix = _matrix(found)
        left, sizes, right = np.linalg.svd(matrix[:3, :3])
        turned = Rotation.from_euler("xyz", DISTURBED_DEG, degrees=True).as_matrix() @ left @ right
        center = _apply(matrix, self.template.center_mm) + DISTURBED_MM
        start = self._similarity(turned, center, float(np.prod(sizes)) ** (1 / 3))
        result = self._similarity_search(start)
        if result is None:
            raise self._failure("was lost from a second start", "is it a whole head?")
        return result[1]

    def similarity(self, matrix: np.ndarray) -> tuple[float, float]:
        """Return the correlation in the template's mask, and the fraction of the mask inside the scan."""
        index = np.argwhere(self.template.mask)
        place = _apply(np.linalg.inv(self.affine), _apply(matrix, _apply(self.template.affine, index)))
        inside = np.all((place >= -0.5) & (place <= np.array(self.scan.shape) - 0.5), axis=1)
        if inside.sum() < 100:
            return 0.0, float(inside.mean())
        values = ndimage.map_coordinates(self.scan, place[inside].T, order=1, mode="nearest")
        wanted = self.template.array[tuple(index[inside].T)]
        if values.std() == 0:
            return 0.0, float(inside.mean())
        return float(np.corrcoef(values, wanted)[0, 1]), float(inside.mean())

    def check(self, location: Location) -> None:
        """Raise RegionError unless the location can be trusted."""
        assert location.correlation is not None
        if location.correlation < MIN_CORRELATION:
            raise self._failure(
                f"does not resemble the template (correlation {location.correlation:.2f}, needs {MIN_CORRELATION})",
                self._explanation(location),
            )
        smallest, largest = location.scales[-1], location.scales[0]
        if smallest < SCALES[0] or largest > SCALES[1]:
            raise self._failure(
                f"fits the template only at {smallest:.2f} to {largest:.2f} of its size (expected {SCALES[0]} to "
                f"{SCALES[1]})",
                "check the voxel size in its header.",
            )
        if location.overlap < MIN_OVERLAP:
            raise self._failure(
                f"shows {location.overlap:.0%} of the template (needs {MIN_OVERLAP:.0%})", "is it a whole head?"
            )
        if location.disagreement_mm > MAX_DISAGREEMENT_MM:
            raise self._failure(
                f"gives two places {location.disagreement_mm:.1f} mm apart in two searches (expected at most "
                f"{MAX_DISAGREEMENT_MM:g} mm)",
                "look at the picture.",
            )

    def _explanation(self, location: Location) -> str:
        """Find out why a scan does not resemble the template: contrast, or an orientation that the header has wrong."""
        if location.correlation is not None and location.correlation < -MIN_CORRELATION:
            return "its contrast is inverted, so it is another kind of image than the network was trained on."
        for axis, direction in enumerate(DIRECTIONS):
            other = copy(self)
            # the template is turned, because the search's rotations have a singularity at 180 degrees
            other._use(self.template.turned(axis))
            found = other._best(other._starts(nods_deg=(0.0,)))
            if found is not None and other.similarity(_matrix(other.refine(found)))[0] >= MIN_CORRELATION:
                return f"it does when it is turned by 180 degrees about the {direction} axis: correct its header."
        return "is it a whole head, of the kind that the network was trained on, with the right orientation?"

    def _failure(self, problem: str, advice: str) -> RegionError:
        return RegionError(f"{self.name}: the regions were not found: the scan {problem}; {advice} Or {self.hint}")

    def _foreground(self) -> np.ndarray:
        """Positions (n, 3) in mm of the voxels that are not air."""
        level = 0.1 * np.percentile(self.scan, 99.5)
        index = np.argwhere(self.scan > level)
        if len(index) == 0:
            index = np.argwhere(self.scan > self.scan.min())
        return _apply(self.affine, index)

    def _starts(self, nods_deg: Sequence[float]) -> Iterator[sitk.Similarity3DTransform]:
        points = self._foreground()
        vertex = np.percentile(points[:, 2], 99.5)
        centers = [
            _apply(self.affine, (np.array(self.scan.shape) - 1) / 2),
            points.mean(axis=0),
            points[points[:, 2] > vertex - UPPER_HEAD_MM].mean(axis=0),
        ]
        for number, center in enumerate(centers):
            if any(np.linalg.norm(center - earlier) < SPACING_MM for earlier in centers[:number]):
                continue
            for nod in nods_deg:
                yield self._similarity(Rotation.from_euler("x", nod, degrees=True).as_matrix(), center, 1.0)

    def _similarity(self, rotation: np.ndarray, center_mm: np.ndarray, scale: float) -> sitk.Similarity3DTransform:
        """Return the transform that takes the template's centre to `center_mm`."""
        transform = sitk.Similarity3DTransform()
        transform.SetCenter(_lps(self.template.center_mm).tolist())
        quaternion = Rotation.from_matrix(_FLIP @ rotation @ _FLIP).as_quat()
        transform.SetRotation([float(value) for value in quaternion])
        transform.SetTranslation(_lps(center_mm - self.template.center_mm).tolist())
        transform.SetScale(scale)
        return transform

    def _similarity_search(self, start: sitk.Similarity3DTransform) -> tuple[float, sitk.Similarity3DTransform] | None:
        """Search for rotation, shift and one scale at twice the spacing; None if the template leaves the scan."""
        transform = sitk.Similarity3DTransform(start)
        metric = self._register(transform, (2,), step_mm=4.0, smallest_mm=0.05)
        return None if metric is None else (metric, transform)

    def _register(
        self, transform: sitk.Transform, shrinkings: tuple[int, ...], step_mm: float, smallest_mm: float
    ) -> float | None:
        """Move a transform in place to the nearest optimum; return the metric (smaller is better)."""
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(32)
        method.SetMetricSamplingStrategy(method.NONE)
        method.SetMetricFixedMask(self.mask)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(
            step_mm, smallest_mm, numberOfIterations=100, gradientMagnitudeTolerance=1e-6
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel(list(shrinkings))
        method.SetSmoothingSigmasPerLevel([2.0 * factor for factor in shrinkings])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(self.fixed, self.moving)
        except RuntimeError as error:
            if "samples map outside" not in str(error) and "Too many samples" not in str(error):
                raise
            return None
        return float(method.GetMetricValue())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let ITK work in one thread: sums over several threads depend on their number, and a search on such sums."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


_FLIP = np.diag([-1.0, -1.0, 1.0])


def _lps(point_mm: np.ndarray) -> np.ndarray:
    return _FLIP @ point_mm


def _matrix(transform: sitk.Transform) -> np.ndarray:
    """Return a linear SimpleITK transform (LPS+) as a 4×4 matrix in RAS+ mm."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(row))) - origin for row in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3] = _FLIP @ np.array(columns).T @ _FLIP
    matrix[:3, 3] = _FLIP @ origin
    return matrix


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a 4×4 matrix to points (…, 3)."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]
