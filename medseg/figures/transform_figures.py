"""Figures of transforms: deformation grids and weight maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import GeometryError
from medseg.figures.canvas import OKABE_ITO, color_labels, new_figure, rgb, save_png
from medseg.figures.planes import check_one_shape, fullest_slice, pixel_aspect, take_slice

GRID_COLOR = OKABE_ITO[3]
OUTLINE_COLOR = OKABE_ITO[1]


def deformation_grid(
    image: np.ndarray,
    moved: np.ndarray,
    coordinates: np.ndarray,
    path: str | Path | None = None,
    title: str = "deformed",
    label_map: np.ndarray | None = None,
    moved_label_map: np.ndarray | None = None,
    spacing: Sequence[float] | None = None,
    num_lines: int = 11,
    index: int | None = None,
) -> Any:
    """Draw an image before and after a deformation, with a grid and the outlines of its labels.

    The lines of the grid are level sets of the source coordinates, so that they are deformed exactly as the image.

    Args:
        image: (i, j) or (i, j, k).
        moved: the deformed image, of the same shape.
        coordinates: (i, j, 2) or (i, j, k, 3), position in `image` that each voxel of `moved` comes from, in voxels, as
            returned by `Deformation.source_coordinates`.
        path: PNG file to write atomically.
        title: title of the deformed image.
        label_map: integers of the same shape; their outlines are drawn on the image.
        moved_label_map: the deformed label map.
        spacing: voxel size in mm, for the proportions of the pixels; square by default.
        num_lines: lines of the grid per axis.
        index: slice along the third axis; the middle one by default.

    Returns:
        The matplotlib figure, or the path if one was given.

    Raises:
        ImportError: matplotlib is not installed.
        GeometryError: the shapes differ.
    """
    label_maps = {"label_map": label_map, "moved_label_map": moved_label_map}
    check_one_shape(image=image, moved=moved, **{k: v for k, v in label_maps.items() if v is not None})
    if coordinates.shape != (*image.shape, image.ndim):
        raise GeometryError(f"coordinates must have shape {(*image.shape, image.ndim)}, found {coordinates.shape}")
    index = image.shape[-1] // 2 if index is None else index
    rows, columns = np.indices(image.shape[:2], dtype=float)
    sources = [take_slice(coordinates[..., axis], index) for axis in (0, 1)]
    low, high = min(0.0, float(np.min(image))), float(np.max(image))
    figure = new_figure(10.0, 5.2)
    figure.set_layout_engine("constrained")
    before, after = figure.subplots(1, 2)
    for axes, picture, labels, text, grid in (
        (before, image, label_map, "before", (rows, columns)),
        (after, moved, moved_label_map, title, sources),
    ):
        plane = take_slice(picture, index)
        aspect = pixel_aspect(spacing)
        axes.imshow(plane, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
        for size, coordinate in zip(image.shape[:2], grid, strict=True):
            levels = np.arange(1, num_lines + 1) * (size / (num_lines + 1))
            axes.contour(coordinate, levels=levels, colors=GRID_COLOR, linewidths=0.9)
        if labels is not None:
            _draw_outlines(axes, take_slice(labels, index), aspect)
        axes.set_title(text, fontsize=10)
        axes.set_axis_off()
    return figure if path is None else save_png(figure, path)


def outlines(label_map: np.ndarray) -> np.ndarray:
    """Return True at the pixels whose neighbour below or to the right has another label.

    Args:
        label_map: (i, j) integers.
    """
    edges = np.zeros(label_map.shape, dtype=bool)
    edges[:-1] |= label_map[1:] != label_map[:-1]
    edges[:, :-1] |= label_map[:, 1:] != label_map[:, :-1]
    return edges


def _draw_outlines(axes: Any, label_map: np.ndarray, aspect: float) -> None:
    picture = np.zeros((*label_map.shape, 4))
    picture[outlines(label_map)] = [*(part / 255 for part in rgb(OUTLINE_COLOR)), 0.9]
    axes.imshow(picture, aspect=aspect, interpolation="nearest")


def weight_map(
    image: np.ndarray,
    target: np.ndarray,
    weights: np.ndarray,
    path: str | Path | None = None,
    title: str = "weight",
    spacing: Sequence[float] | None = None,
    index: int | None = None,
) -> Any:
    """Draw an image, its target and its weights side by side, with a scale for the weights.

    Args:
        image: (i, j) or (i, j, k), any real type.
        target: integers of the same shape, classes or instances; 0 is background and black. Colours repeat after seven.
        weights: non-negative numbers of the same shape.
        path: PNG file to write atomically.
        title: title of the weights.
        spacing: voxel size in mm, for the proportions of the pixels; square by default.
        index: slice along the third axis; by default the one with the largest sum of weights.

    Returns:
        The matplotlib figure, or the path if one was given.

    Raises:
        ImportError: matplotlib is not installed.
        GeometryError: the shapes differ.
    """
    check_one_shape(image=image, target=target, weights=weights)
    if image.ndim == 3:
        index = fullest_slice(weights) if index is None else index
        image, target, weights = (take_slice(array, index) for array in (image, target, weights))
        title = f"{title} (slice {index + 1})"
    figure = new_figure(13.2, 4.4)
    figure.set_layout_engine("constrained")
    left, middle, right = figure.subplots(1, 3)
    common = {"aspect": pixel_aspect(spacing), "interpolation": "nearest"}
    left.imshow(image, cmap="gray", **common)
    middle.imshow(color_labels(target), **common)
    scale = right.imshow(weights, cmap="magma", vmin=0, vmax=max(float(np.max(weights, initial=0)), 1e-6), **common)
    figure.colorbar(scale, ax=right, fraction=0.046, pad=0.03)
    for axes, text in zip((left, middle, right), ("image", "target", title), strict=True):
        axes.set_title(text, fontsize=10)
        axes.set_axis_off()
    return figure if path is None else save_png(figure, path)
