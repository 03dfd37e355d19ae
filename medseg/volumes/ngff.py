"""Read and write the metadata of OME-Zarr images: OME-NGFF 0.4 on Zarr 2 and 0.5 on Zarr 3, and of plain Zarr arrays.

OME-NGFF stores the voxel size and the position of voxel 0 per resolution level, along axes with a unit. The axes x, y
and z are read as the directions R, A and S of the patient, unless they state an anatomical orientation (RFC 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.errors import GeometryError, VolumeError
from medseg.volumes.grid import Grid

MM_PER_UNIT = {
    "angstrom": 1e-7,
    "nanometer": 1e-6,
    "micrometer": 1e-3,
    "millimeter": 1.0,
    "centimeter": 10.0,
    "meter": 1e3,
    "inch": 25.4,
}
# Patient axis (R, A, S) and sign of each anatomical orientation, and the orientation of axes that state none.
DIRECTIONS = {
    "left-to-right": (0, 1.0),
    "right-to-left": (0, -1.0),
    "posterior-to-anterior": (1, 1.0),
    "anterior-to-posterior": (1, -1.0),
    "inferior-to-superior": (2, 1.0),
    "superior-to-inferior": (2, -1.0),
}
DEFAULT_DIRECTIONS = {"x": "left-to-right", "y": "posterior-to-anterior", "z": "inferior-to-superior"}
KINDS = {"t": "time", "c": "channel", **dict.fromkeys("xyz", "space")}
# A new pyramid ends when no axis has more voxels than this.
SMALLEST_LEVEL = 256


@dataclass(frozen=True)
class Axis:
    """An axis of an array.

    Args:
        name: such as `z`.
        kind: `space`, `channel` or `time`.
        unit: of space; "" if the file states none.
        orientation: key of `DIRECTIONS`; "" if the file states none.
    """

    name: str
    kind: str
    unit: str = ""
    orientation: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the axis as OME-NGFF writes it."""
        entry: dict[str, Any] = {"name": self.name, "type": self.kind}
        if self.unit:
            entry["unit"] = self.unit
        if self.orientation:
            entry["orientation"] = {"type": "anatomical", "value": self.orientation}
        return entry


@dataclass(frozen=True)
class Level:
    """A resolution level.

    Args:
        path: of the array inside the group; "" if the store is the array itself.
        scale: voxel size along each axis, in the unit of the axis.
        translation: position of voxel 0 along each axis.
    """

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True)
class Multiscale:
    """Axes and resolution levels of an image, the finest level first.

    Args:
        axes: of every level, in the order of its array.
        levels: at least one.
        version: "0.4" or "0.5"; "" for an array without OME-NGFF metadata.
    """

    axes: tuple[Axis, ...]
    levels: tuple[Level, ...]
    version: str

    @property
    def spatial_axes(self) -> tuple[int, ...]:
        """Numbers of the axes of space."""
        return tuple(number for number, axis in enumerate(self.axes) if axis.kind == "space")

    def spatial(self) -> Multiscale:
        """Return the axes of space alone."""
        keep = self.spatial_axes

        def kept(values: Sequence[float]) -> tuple[float, ...]:
            return tuple(values[n] for n in keep)

        levels = tuple(Level(level.path, kept(level.scale), kept(level.translation)) for level in self.levels)
        return Multiscale(tuple(self.axes[n] for n in keep), levels, self.version)

    def grid(self, shape: Sequence[int], name: object) -> Grid:
        """Return the grid of the finest level.

        Args:
            shape: of the axes of space, in voxels.
            name: of the file, for messages.

        Raises:
            GeometryError: two axes have one direction.
        """
        spatial = self.spatial()
        affine = np.zeros((4, 4))
        affine[3, 3] = 1.0
        level = spatial.levels[0]
        for column, (axis, scale, offset) in enumerate(zip(spatial.axes, level.scale, level.translation, strict=True)):
            row, sign = DIRECTIONS[axis.orientation or DEFAULT_DIRECTIONS[axis.name]]
            factor = sign * MM_PER_UNIT.get(axis.unit, 1.0)
            affine[row, column], affine[row, 3] = factor * scale, factor * offset
        if len(shape) == 2:
            affine[np.flatnonzero(~affine[:3, :2].any(axis=1))[:1], 2] = 1.0
        try:
            return Grid(tuple(shape), affine)
        except GeometryError as error:
            raise GeometryError(f"{name}: {error}") from error

    def notes(self, name: object) -> list[str]:
        """Return warnings about the units, one per line."""
        units = sorted({axis.unit for axis in self.spatial().axes if axis.unit not in MM_PER_UNIT})
        if not units:
            return []
        found = "no unit" if units == [""] else f"the unit {units[-1]!r}"
        return [f"{name}: its axes of space state {found}; the numbers of its scale are read as mm"]


def read_multiscale(attributes: Mapping[str, Any], name: object) -> Multiscale:
    """Read the metadata of an OME-Zarr image.

    Args:
        attributes: of the Zarr group.
        name: of the store, for messages.

    Raises:
        VolumeError: there is no image, its axes are not those of one image in space, or it has no scale.
    """
    ome = attributes.get("ome")
    found: Mapping[str, Any] = ome if isinstance(ome, Mapping) else attributes
    images = found.get("multiscales")
    if not isinstance(images, Sequence) or not images or not isinstance(images[0], Mapping):
        raise VolumeError(
            f"{name}: a Zarr group without an OME-NGFF image; found no multiscales in its attributes; name the group "
            "of one image, or an array"
        )
    image = images[0]
    version = str(found.get("version", "0.5")) if found is ome else str(image.get("version", "0.4"))
    axes = _axes(image.get("axes"), name)
    datasets = image.get("datasets")
    if not isinstance(datasets, Sequence) or not datasets or not all(isinstance(d, Mapping) for d in datasets):
        raise VolumeError(f"{name}: its multiscales list no datasets; convert the image to OME-NGFF 0.4 or 0.5")
    whole_scale, whole_translation = _transformation(image, len(axes), name, is_optional=True)
    levels = []
    for dataset in datasets:
        scale, translation = _transformation(dataset, len(axes), name)
        levels.append(
            Level(
                str(dataset.get("path", "")),
                tuple(a * b for a, b in zip(scale, whole_scale, strict=True)),
                tuple(a * s + b for a, s, b in zip(translation, whole_scale, whole_translation, strict=True)),
            )
        )
    return Multiscale(axes, tuple(levels), version)


def read_array_attributes(
    attributes: Mapping[str, Any], dimensions: Sequence[Any] | None, num_axes: int, name: object
) -> Multiscale:
    """Read the axes and the scale of a Zarr array that is no part of an OME-Zarr image.

    Args:
        attributes: of the array: `scale`, one number per axis, and optionally `translation` and `unit`.
        dimensions: names of the axes in Zarr 3; None takes xarray's `_ARRAY_DIMENSIONS`, or (c,) z, y, x.
        num_axes: of the array.
        name: of the store, for messages.

    Raises:
        VolumeError: as `read_multiscale`.
    """
    names = dimensions if dimensions and all(dimensions) else attributes.get("_ARRAY_DIMENSIONS")
    names = list("czyx" if num_axes == 4 else "zyx"[-num_axes:]) if names is None else list(names)
    unit = str(attributes.get("unit", ""))
    entries = [{"name": n, "type": KINDS.get(str(n), "space"), "unit": unit} for n in names]
    axes = _axes(entries, name)
    if len(axes) != num_axes:
        raise VolumeError(f"{name}: has {num_axes} axes, but names for {len(axes)}: {', '.join(map(str, names))}")
    given = [{"type": key, key: attributes[key]} for key in ("scale", "translation") if key in attributes]
    scale, translation = _transformation({"coordinateTransformations": given}, num_axes, name)
    return Multiscale(axes, (Level("", scale, translation),), "")


def _axes(entries: Any, name: object) -> tuple[Axis, ...]:
    """Return the axes of the metadata.

    Raises:
        VolumeError: they are not two or three of x, y and z, at most with a channel and a time axis before them.
    """
    axes = []
    for entry in entries if isinstance(entries, Sequence) else ():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise VolumeError(f"{name}: has axes without a name; found {entry!r:.80}; correct the metadata")
        orientation = entry.get("orientation")
        value = orientation.get("value", "") if isinstance(orientation, Mapping) else ""
        if value and value not in DIRECTIONS:
            raise VolumeError(
                f"{name}: axis {entry['name']} has the orientation {value!r}; expected {', '.join(DIRECTIONS)}"
            )
        kind = entry.get("type", KINDS.get(entry["name"], ""))
        axes.append(Axis(entry["name"], str(kind), str(entry.get("unit") or ""), str(value)))
    space = [axis for axis in axes if axis.kind == "space"]
    others = [axis.kind for axis in axes if axis.kind != "space"]
    is_known = all(axis.orientation or axis.name in DEFAULT_DIRECTIONS for axis in space)
    is_usual = len(space) in (2, 3) and len({axis.name for axis in axes}) == len(axes) and is_known
    if not is_usual or not set(others) <= {"time", "channel"} or len(set(others)) != len(others):
        found = ", ".join(f"{axis.name} ({axis.kind or 'no type'})" for axis in axes) or "none"
        raise VolumeError(
            f"{name}: its axes are not those of an image; found {found}, expected x, y and z of type space, and at "
            "most c and t before them; correct the axes in its metadata"
        )
    return tuple(axes)


def _transformation(
    entry: Mapping[str, Any], num_axes: int, name: object, is_optional: bool = False
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and translation of a dataset, or of the whole image, where they are optional."""
    scale, translation = None, [0.0] * num_axes
    steps = entry.get("coordinateTransformations")
    for step in steps if isinstance(steps, Sequence) else ():
        kind = step.get("type") if isinstance(step, Mapping) else None
        if kind not in ("scale", "translation", "identity"):
            raise VolumeError(
                f"{name}: has a coordinate transformation of type {kind!r}; expected scale and translation; resample it"
            )
        if kind == "identity":
            continue
        values = step.get(kind)
        is_list = isinstance(values, Sequence) and len(values) == num_axes
        if not is_list or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            raise VolumeError(
                f"{name}: its {kind} must be {num_axes} numbers, one per axis; found {values!r:.80}; correct it"
            )
        if kind == "scale":
            scale = [float(v) for v in values]
        else:
            translation = [float(v) for v in values]
    if scale is None and is_optional:
        scale = [1.0] * num_axes
    if scale is None:
        raise VolumeError(
            f"{name}: states no scale, so the size of its voxels is unknown; expected a coordinateTransformation of "
            "type scale, or the attribute scale of a Zarr array; add it"
        )
    if min(scale) <= 0:
        raise VolumeError(f"{name}: its scale must be positive; found {scale}; correct its metadata")
    return tuple(scale), tuple(translation)


def new_multiscale(grid: Grid) -> tuple[Multiscale, tuple[int, ...]]:
    """Return the metadata of a new image on an upright grid, and the order of its axes.

    Returns:
        One level in mm with the anatomical orientation of each axis, and for each axis of the new array (…, z, y, x)
        the axis of the grid that it takes.

    Raises:
        GeometryError: an axis of the grid is not parallel to an axis of the patient.
    """
    dims = grid.spatial_dims
    matrix = grid.affine[:3, :dims]
    rows = np.abs(matrix).argmax(axis=0)
    aside = np.abs(matrix).sum(axis=0) - np.abs(matrix).max(axis=0)
    limit = 1e-3 * np.array(grid.spacing) / np.maximum(grid.shape, 2)
    if len(set(rows.tolist())) != dims or (aside > limit).any():
        raise GeometryError(
            "OME-Zarr stores a scale and a translation, and no rotation; the axes are oblique; choose another format"
        )
    order = tuple(int(n) for n in np.argsort(-rows))
    directions = {(row, sign): name for name, (row, sign) in DIRECTIONS.items()}
    axes, scale, translation = [], [], []
    for column in order:
        row = int(rows[column])
        sign = 1.0 if matrix[row, column] > 0 else -1.0
        axes.append(Axis("xyz"[row], "space", "millimeter", directions[row, sign]))
        scale.append(float(abs(matrix[row, column])))
        translation.append(float(sign * grid.affine[row, 3]))
    return Multiscale(tuple(axes), (Level("0", tuple(scale), tuple(translation)),), "0.5"), order


def with_pyramid(image: Multiscale, shape: Sequence[int]) -> tuple[Multiscale, list[tuple[int, ...]]]:
    """Add levels of half the size until no axis has more than 256 voxels.

    Args:
        image: axes of space and one level.
        shape: of that level.

    Returns:
        The image with its levels, and the shape of each.
    """
    first = image.levels[0]
    levels, shapes = [Level("0", first.scale, first.translation)], [tuple(int(n) for n in shape)]
    while max(shapes[-1]) > SMALLEST_LEVEL:
        halves = [2 if n > SMALLEST_LEVEL else 1 for n in shapes[-1]]
        scale = tuple(s * f for s, f in zip(levels[-1].scale, halves, strict=True))
        levels.append(Level(str(len(levels)), scale, first.translation))
        shapes.append(tuple(-(-n // f) for n, f in zip(shapes[-1], halves, strict=True)))
    return Multiscale(image.axes, tuple(levels), image.version or "0.5"), shapes


def image_attributes(image: Multiscale, name: str) -> dict[str, Any]:
    """Return the attributes of a group that holds an image.

    Args:
        image: axes and levels.
        name: of the image.
    """
    entry: dict[str, Any] = {
        "name": name,
        "axes": [axis.to_dict() for axis in image.axes],
        "datasets": [
            {
                "path": level.path,
                "coordinateTransformations": [
                    {"type": "scale", "scale": list(level.scale)},
                    {"type": "translation", "translation": list(level.translation)},
                ],
            }
            for level in image.levels
        ],
    }
    if image.version == "0.4":
        return {"multiscales": [{"version": "0.4", **entry}]}
    return {"ome": {"version": image.version, "multiscales": [entry]}}


def label_attributes(
    image: Multiscale, name: str, labels: Mapping[str, int], colors: Sequence[Sequence[int]], source: str
) -> dict[str, Any]:
    """Return the attributes of a group that holds a label image.

    Args:
        image: axes and levels.
        name: of the label image.
        labels: value of each label by name.
        colors: red, green and blue of each label except the background, 0 to 255.
        source: path of the labelled image, relative to the group; "" if it is no OME-Zarr image.
    """
    foreground = [(label, value) for label, value in labels.items() if value != 0]
    entry: dict[str, Any] = {
        "colors": [
            {"label-value": value, "rgba": [*color, 255]} for (_, value), color in zip(foreground, colors, strict=True)
        ],
        "properties": [{"label-value": value, "class": label} for label, value in foreground],
    }
    if source:
        entry["source"] = {"image": source}
    attributes = image_attributes(image, name)
    if image.version == "0.4":
        return {**attributes, "image-label": {"version": "0.4", **entry}}
    return {"ome": {**attributes["ome"], "image-label": entry}}
